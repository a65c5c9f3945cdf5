"""Replies of each dialect, written after its public documentation, and all forms of usage."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchline.models.usage import ReportedUsage, Usage, read_usage, to_usage
from batchline.upstream.dialects.judge import Expectation, judge, judge_fully

FOLDER = Path(__file__).with_name("golden")
FIELDS = ("code", "retry", "out_reason", "mark", "finish_reason", "model", "message")


class Golden(NamedTuple):
    """A reply with the judgement that it must get."""

    endpoint: str
    status: int
    body: bytes
    expectation: Expectation
    expected: dict[str, Any]


def load() -> dict[str, Golden]:
    replies = {}
    for path in sorted(FOLDER.glob("*.json")):
        for name, case in json.loads(path.read_text(encoding="utf-8"))["cases"].items():
            body = case["text"] if "text" in case else json.dumps(case["body"])
            expectation = Expectation(case.get("inputs"))
            replies[f"{path.stem}-{name}"] = Golden(
                case["endpoint"], case["status"], body.encode(), expectation, case["expected"]
            )
    return replies


REPLIES = load()


@pytest.mark.parametrize("name", REPLIES)
def test_reply_of_the_dialect_gets_its_judgement(name: str) -> None:
    reply = REPLIES[name]
    usage = reply.expected.get("usage")

    for function in (judge, judge_fully):
        judgement = function(reply.endpoint, reply.status, reply.body, reply.expectation)
        assert {field: getattr(judgement, field) for field in FIELDS} == {
            field: reply.expected.get(field) for field in FIELDS
        }
        assert judgement.usage == (None if usage is None else Usage(*usage))


def test_each_dialect_has_a_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {
        "anthropic",
        "azure",
        "gemini",
        "llama_cpp",
        "ollama",
        "openai_chat",
        "openai_responses",
        "openrouter",
        "tgi",
        "vllm",
    }


TOP = 2**53
CHAT = {
    "prompt_tokens": 10,
    "completion_tokens": 30,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 25, "accepted_prediction_tokens": 0},
}
USAGES: dict[str, tuple[dict[str, Any], Usage | None]] = {
    "no_total": ({"prompt_tokens": 10, "completion_tokens": 30}, Usage(10, 30, 40, None, 0)),
    "thoughts_only_in_the_total": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115},
        Usage(10, 105, 115, None, 0),
    ),
    "thoughts_in_the_details_and_the_total": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 115,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(10, 105, 115, 100, 0),
    ),
    "thoughts_of_responses": (
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 115,
            "output_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(10, 105, 115, 100, 0),
    ),
    "completion_missing": ({"prompt_tokens": 10, "total_tokens": 115}, Usage(10, 105, 115, None, 0)),
    "prompt_missing": ({"completion_tokens": 5, "total_tokens": 15}, Usage(10, 5, 15, None, 0)),
    "only_total": ({"total_tokens": 15}, Usage(0, 0, 15, None, 0)),
    "only_prompt": ({"prompt_tokens": 15}, Usage(15, 0, 15, None, 0)),
    "total_too_low": (
        {"prompt_tokens": 10, "completion_tokens": 30, "total_tokens": 0},
        Usage(10, 30, 40, None, 0),
    ),
    "total_below_prompt": ({"prompt_tokens": 10, "total_tokens": 3}, Usage(10, 0, 10, None, 0)),
    "strings": ({"prompt_tokens": "10", "completion_tokens": "30", "total_tokens": "40"}, None),
    "one_string": (
        {"prompt_tokens": "10", "completion_tokens": 30, "total_tokens": 40},
        Usage(10, 30, 40, None, 0),
    ),
    "floats": ({"prompt_tokens": 10.0, "completion_tokens": 1.5}, None),
    "one_float": ({"prompt_tokens": 10, "completion_tokens": 30.0}, Usage(10, 0, 10, None, 0)),
    "negatives": ({"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2}, None),
    "one_negative": (
        {"prompt_tokens": 10, "completion_tokens": -1, "total_tokens": 40},
        Usage(10, 30, 40, None, 0),
    ),
    "booleans": ({"prompt_tokens": True, "completion_tokens": False}, None),
    "largest": ({"prompt_tokens": TOP, "completion_tokens": 0, "total_tokens": TOP}, Usage(TOP, 0, TOP, None, 0)),
    "too_large": ({"prompt_tokens": TOP + 1, "completion_tokens": 10**40}, None),
    "sum_too_large": ({"prompt_tokens": TOP, "completion_tokens": TOP}, Usage(TOP, TOP, TOP, None, 0)),
    "anthropic": (
        {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3, "output_tokens": 30},
        Usage(17, 30, 47, None, 4, 3),
    ),
    "anthropic_behind_a_proxy_that_added_them": (
        {
            "prompt_tokens": 17,
            "completion_tokens": 30,
            "total_tokens": 47,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        Usage(17, 30, 47, None, 4),
    ),
    "deepseek": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_cache_hit_tokens": 6,
            "prompt_cache_miss_tokens": 4,
        },
        Usage(10, 3, 13, None, 6),
    ),
    "cached_more_than_prompt": (
        {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 1}},
        Usage(3, 0, 3, None, 3),
    ),
    "details_odd": (
        {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": "2"}, "completion_tokens_details": [1]},
        Usage(3, 0, 3, None, 0),
    ),
    "details_negative": (
        {
            "prompt_tokens": 3,
            "completion_tokens": 1,
            "total_tokens": 4,
            "completion_tokens_details": {"reasoning_tokens": -1},
        },
        Usage(3, 1, 4, None, 0),
    ),
    "chat": (CHAT, Usage(10, 30, 40, 25, 4)),
    "responses": (
        {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 30,
            "output_tokens_details": {"reasoning_tokens": 25},
            "total_tokens": 40,
        },
        Usage(10, 30, 40, 25, 4),
    ),
    "cache_writes": (
        CHAT | {"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}},
        Usage(10, 30, 40, 25, 4, 5),
    ),
    "details_null": (
        CHAT | {"prompt_tokens_details": None, "completion_tokens_details": None},
        Usage(10, 30, 40, None, 0),
    ),
    "details_empty": (CHAT | {"prompt_tokens_details": {}}, Usage(10, 30, 40, 25, 0)),
    "no_thoughts": (
        CHAT | {"completion_tokens_details": {"reasoning_tokens": 0}},
        Usage(10, 30, 40, 0, 4),
    ),
    "completion_null": (
        {"prompt_tokens": 8, "completion_tokens": None, "total_tokens": 8},
        Usage(8, 0, 8, None, 0),
    ),
    "unknown_members": (CHAT | {"cost": 0.1, "queue_time": None}, Usage(10, 30, 40, 25, 4)),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0, None, 0)),
    "nothing": ({}, None),
    "other_names": ({"tokens": 3}, None),
}


@pytest.mark.parametrize("name", USAGES)
def test_usage_is_neither_invented_nor_lost(name: str) -> None:
    reported, expected = USAGES[name]
    body = {"choices": [{"message": {"content": "a"}}], "usage": reported}

    assert read_usage(reported) == expected
    for function in (judge, judge_fully):
        assert function("/v1/chat/completions", 200, json.dumps(body).encode()).usage == expected


@pytest.mark.parametrize("value", [None, [1], 7, "none", True])
def test_usage_that_is_no_object_is_none(value: object) -> None:
    assert read_usage(value) is None


def test_usage_of_embeddings_is_all_input() -> None:
    body = {"data": [{"embedding": [1.0]}], "usage": {"total_tokens": 7}}

    assert judge("/v1/embeddings", 200, json.dumps(body).encode()).usage == Usage(7, 0, 7, None, 0)


def test_empty_report_has_no_usage() -> None:
    assert to_usage(ReportedUsage()) is None

"""Responses of the simulator: the shapes of the APIs, and usage computed from the text."""

import json
import struct
from base64 import b64decode

import pytest
from helpers.simulator_client import chat_body, send

USAGE = {
    "prompt_tokens": int,
    "completion_tokens": int,
    "total_tokens": int,
    "prompt_tokens_details": {"cached_tokens": int},
    "completion_tokens_details": {"reasoning_tokens": int},
}
CATEGORIES = [
    *(
        "harassment",
        "harassment/threatening",
        "hate",
        "hate/threatening",
        "illicit",
        "illicit/violent",
        "self-harm",
    ),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
]
SHAPES = {
    "/v1/chat/completions": (
        chat_body(),
        {
            "id": str,
            "object": "chat.completion",
            "created": int,
            "model": "m",
            "usage": USAGE,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": str}, "finish_reason": "stop"},
            ],
        },
    ),
    "/v1/completions": (
        {"model": "m", "prompt": "Once"},
        {
            "id": str,
            "object": "text_completion",
            "created": int,
            "model": "m",
            "usage": USAGE,
            "choices": [{"index": 0, "text": str, "logprobs": None, "finish_reason": "stop"}],
        },
    ),
    "/v1/responses": (
        {"model": "m", "input": "Hello"},
        {
            "id": str,
            "object": "response",
            "created_at": int,
            "status": "completed",
            "model": "m",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [
                {
                    "type": "message",
                    "id": str,
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "annotations": [], "text": str}],
                }
            ],
            "usage": {
                "input_tokens": int,
                "output_tokens": int,
                "total_tokens": int,
                "input_tokens_details": {"cached_tokens": int, "cache_write_tokens": int},
                "output_tokens_details": {"reasoning_tokens": int},
            },
        },
    ),
    "/v1/embeddings": (
        {"model": "m", "input": "Hello"},
        {
            "object": "list",
            "model": "m",
            "usage": {"prompt_tokens": int, "total_tokens": int},
            "data": [{"object": "embedding", "index": 0, "embedding": [float] * 16}],
        },
    ),
    "/v1/moderations": (
        {"model": "m", "input": "Hello"},
        {
            "id": str,
            "model": "m",
            "results": [
                {
                    "flagged": False,
                    "categories": dict.fromkeys(CATEGORIES, False),
                    "category_scores": dict.fromkeys(CATEGORIES, float),
                    "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
                }
            ],
        },
    ),
    "/v1/messages": (
        chat_body(max_tokens=100),
        {
            "id": str,
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": str}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": int,
                "output_tokens": int,
                "cache_read_input_tokens": int,
                "cache_creation_input_tokens": int,
            },
        },
    ),
}
"""A body for each endpoint, and the answer with types where values may be any.

The members are those without which the types of OpenAI's and Anthropic's Python clients do not validate.
"""


def fits(value: object, shape: object) -> bool:
    """Return True if the value has the shape: the same members, with values of the given types or equal values."""
    if isinstance(shape, dict):
        return (
            isinstance(value, dict)
            and value.keys() == shape.keys()
            and all(fits(value[name], part) for name, part in shape.items())
        )
    if isinstance(shape, list):
        return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
    return isinstance(value, shape) if isinstance(shape, type) else value == shape


@pytest.mark.parametrize("path", SHAPES)
def test_response_has_the_shape_of_its_api(path, plain_simulator):
    body, shape = SHAPES[path]
    answer = send(plain_simulator, body, path=path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert fits(answer.json, shape), answer.json


@pytest.mark.parametrize("path", SHAPES)
def test_usage_matches_simulator_counters(path, plain_simulator):
    body, _ = SHAPES[path]
    usage = send(plain_simulator, body, path=path).json.get("usage", {})
    counted = plain_simulator.counters()
    assert usage.get("prompt_tokens", usage.get("input_tokens", 0)) == counted["prompt_tokens"]
    assert usage.get("completion_tokens", usage.get("output_tokens", 0)) == counted["completion_tokens"]
    assert counted["paths"] == {path: 1}


TEXTS = {"one byte": ("a", 1), "four bytes": ("abcd", 1), "five bytes": ("abcde", 2), "umlauts": ("üüü", 2)}


@pytest.mark.parametrize(("text", "tokens"), TEXTS.values(), ids=TEXTS)
def test_prompt_tokens_are_counted_per_four_bytes(text, tokens, plain_simulator):
    assert send(plain_simulator, chat_body(text)).json["usage"]["prompt_tokens"] == tokens


def test_message_in_parts_counts_like_single_text(plain_simulator):
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "parts"}]
    in_parts = send(plain_simulator, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert (
        in_parts.json["usage"]["prompt_tokens"]
        == send(plain_simulator, chat_body("Hello, parts")).json["usage"]["prompt_tokens"]
    )


def test_token_ids_count_as_one_token_each(plain_simulator):
    answer = send(plain_simulator, {"model": "m", "input": [11, 12, 13, 14, 15]}, path="/v1/embeddings")
    assert (answer.json["usage"]["prompt_tokens"], len(answer.json["data"])) == (5, 1)


def test_response_text_length_matches_usage(plain_simulator):
    answer = send(plain_simulator, chat_body()).json
    assert len(answer["choices"][0]["message"]["content"]) == 4 * answer["usage"]["completion_tokens"]


LIMITS = {
    "max_tokens": ("/v1/chat/completions", chat_body(), "completion_tokens"),
    "max_completion_tokens": ("/v1/chat/completions", chat_body(), "completion_tokens"),
    "max_output_tokens": ("/v1/responses", {"model": "m", "input": "x"}, "output_tokens"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_response_respects_limit_of_tokens(limit, plain_simulator):
    path, body, counted = LIMITS[limit]
    assert send(plain_simulator, body | {limit: 3}, path=path).json["usage"][counted] == 3


def test_response_length_varies_around_answer_tokens_option(start_simulator):
    simulator = start_simulator(answer_tokens=400)
    lengths = [send(simulator, chat_body(f"{number}")).json["usage"]["completion_tokens"] for number in range(50)]
    assert 300 <= min(lengths) < max(lengths) <= 500
    assert 360 <= sum(lengths) / 50 <= 440


MODELS = {"o4-mini": True, "deepseek-reasoner": True, "gpt-4o-mini": False, "llama-3.1-8b-instruct": False}


@pytest.mark.parametrize(("model", "reasons"), MODELS.items(), ids=MODELS)
def test_reasoning_models_report_reasoning_tokens(model, reasons, plain_simulator):
    usage = send(plain_simulator, chat_body() | {"model": model}).json["usage"]
    assert (usage["completion_tokens_details"]["reasoning_tokens"] > 0) == reasons


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/embeddings", {"model": "m", "input": ["a", "b", "c"]}, "data"),
        ("/v1/embeddings", {"model": "m", "input": [[1, 2], [3], [4]]}, "data"),
        ("/v1/completions", {"model": "m", "prompt": ["a", "b", "c"]}, "choices"),
        ("/v1/completions", {"model": "m", "prompt": "a", "n": 3}, "choices"),
        ("/v1/chat/completions", chat_body(n=3), "choices"),
        ("/v1/moderations", {"input": ["a", "b", "c"]}, "results"),
    ],
    ids=["texts", "token ids", "prompts", "completions of one prompt", "choices", "comments"],
)
def test_multiple_inputs_or_choices_get_one_item_each(path, body, where, plain_simulator):
    answer = send(plain_simulator, body, path=path).json
    assert len(answer[where]) == 3
    assert [each.get("index", at) for at, each in enumerate(answer[where])] == [0, 1, 2]


def test_embedding_has_requested_dimensions(plain_simulator):
    answer = send(plain_simulator, {"model": "m", "input": "x", "dimensions": 512}, path="/v1/embeddings")
    vector = answer.json["data"][0]["embedding"]
    assert len(vector) == 512
    assert all(-1 <= number <= 1 for number in vector)


def test_base64_embedding_holds_little_endian_floats(plain_simulator):
    body = {"model": "m", "input": "x", "encoding_format": "base64"}
    packed = send(plain_simulator, body, path="/v1/embeddings").json["data"][0]["embedding"]
    assert len(struct.unpack("<16f", b64decode(packed))) == 16


def test_responses_have_unique_request_ids(plain_simulator):
    ids = {send(plain_simulator, chat_body()).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_models_endpoint_lists_served_models(start_simulator):
    listed = send(start_simulator(models=["a", "b"]), path="/v1/models", method="GET").json
    assert [model["id"] for model in listed["data"]] == ["a", "b"]


def test_unserved_model_returns_404(start_simulator):
    simulator = start_simulator(models=["other"])
    answer = send(simulator, chat_body())
    assert (answer.status, answer.json["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/unknown", "/"])
def test_unknown_path_returns_404(path, plain_simulator):
    assert send(plain_simulator, chat_body(), path=path).status == 404


def test_health_endpoint_returns_ok(plain_simulator):
    assert send(plain_simulator, path="/healthz", method="GET").json == {"status": "ok"}


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{oops",
    "half": json.dumps(chat_body()).encode()[:-5],
    "a list": b"[]",
    "a number": b"7",
    "no UTF-8": b'{"model": "\xff"}',
    "a model that is a number": b'{"model": 7}',
    "a limit that is a text": b'{"model": "m", "max_tokens": "many"}',
    "too many choices": b'{"model": "m", "n": 1000000000}',
    "too many dimensions": b'{"model": "m", "dimensions": 1000000000}',
    "too deep": b'{"model": "m", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_invalid_body_returns_400_and_next_request_succeeds(body, plain_simulator):
    assert send(plain_simulator, body).status == 400
    assert send(plain_simulator, chat_body()).status == 200
    assert plain_simulator.counters()["statuses"] == {"200": 1, "400": 1}


def test_lone_surrogate_in_prompt_is_accepted(plain_simulator):
    assert (
        send(plain_simulator, b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}').status
        == 200
    )

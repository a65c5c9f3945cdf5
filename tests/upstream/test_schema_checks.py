"""Answers checked against the JSON schema that their request asked for."""

import json
import threading
import time

import pytest

from batchline.models.outcomes import Judgement, Mark, apply_output_rules
from batchline.models.schema_check import (
    MAX_SCHEMA_BYTES,
    RequestedSchema,
    find_text_violation,
    is_checkable,
    requested_schema,
)
from batchline.upstream.dialects.judge import judge
from batchline.upstream.dialects.outputs import find_violation

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "items": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name"],
}
TEXT = json.dumps(SCHEMA)
TOOLS = [{"name": "other", "input_schema": {"type": "string"}}, {"name": "save", "input_schema": SCHEMA}]
BODY = {"model": "m", "messages": [{"role": "user", "content": "answer in json"}]}

REQUESTS = {
    "openai": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        None,
    ),
    "responses": (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}, None),
    "llama_cpp": (CHAT, {"response_format": {"type": "json_object", "schema": SCHEMA}}, None),
    "tgi": (CHAT, {"response_format": {"type": "json", "value": SCHEMA}}, None),
    "guided_json": (COMPLETIONS, {"guided_json": SCHEMA}, None),
    "guided_json_as_text": (CHAT, {"guided_json": TEXT}, None),
    "structured_outputs": (CHAT, {"structured_outputs": {"json": SCHEMA}}, None),
    "structured_outputs_as_text": (CHAT, {"structured_outputs": {"json": TEXT}}, None),
    "anthropic_tool": (MESSAGES, {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "save"}}, "save"),
    "anthropic_format": (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, None),
}
NO_REQUESTS = {
    "nothing": (CHAT, {}),
    "json_object": (CHAT, {"response_format": {"type": "json_object"}}),
    "text": (CHAT, {"response_format": {"type": "text"}, "text": "schema"}),
    "null": (CHAT, {"response_format": None, "guided_json": None}),
    "other_guides": (CHAT, {"structured_outputs": {"regex": "json"}}),
    "free_tools": (MESSAGES, {"tools": TOOLS, "tool_choice": {"type": "any"}}),
    "unknown_tool": (MESSAGES, {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "nope"}}),
    "odd_types": (CHAT, {"response_format": "json_schema"}),
    "boolean_schema": (CHAT, {"guided_json": True}),
}


def encode(members: dict) -> bytes:
    return json.dumps(BODY | members).encode()


@pytest.mark.parametrize("name", REQUESTS)
def test_schema_of_a_request_is_found(name: str) -> None:
    endpoint, members, tool = REQUESTS[name]
    found = requested_schema(endpoint, encode(members))

    assert (json.loads(found.schema), found.tool) == (SCHEMA, tool)


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_request_without_schema_has_none(name: str) -> None:
    endpoint, members = NO_REQUESTS[name]

    assert requested_schema(endpoint, encode(members)) is None


GOOD = '{"name": "a", "items": [1, 2]}'
TEXTS = {
    GOOD: None,
    f" \n{GOOD}\n": None,
    '{"name": "a", "more": "\\ud800"}': None,
    '{"name": "a", "name": 3}': '$.name: 3 is not of type "string"',
    '{"name": "a", "items": [1, "2"]}': '$.items[1]: "2" is not of type "integer"',
    '{"items": []}': '$: "name" is a required property',
    "[]": '$: [] is not of type "object"',
    f"```json\n{GOOD}\n```": "$: the answer is in a code fence, not plain JSON",
    "Sure! " + GOOD: "$: the answer is not JSON (at byte 0)",
    GOOD[:-1]: "$: the answer is not JSON (at byte 29)",
    '{"name": NaN}': "$: the answer is not JSON (at byte 9)",
    '{"name": "a", "items": [1e999]}': '$.items[0]: null is not of type "integer"',
}


@pytest.mark.parametrize("text", TEXTS)
def test_first_violation_is_told_with_its_path(text: str) -> None:
    assert find_text_violation(TEXT.encode(), text) == TEXTS[text]


def test_lone_surrogate_in_a_checked_text_is_a_violation_or_fits_but_never_raises() -> None:
    assert find_text_violation(b'{"type": "string", "pattern": "^a"}', '"\\ud800"') is not None
    assert find_text_violation(b'{"type": "object"}', '{"a": "\ud800"}') is None


def test_deep_answer_does_not_overflow() -> None:
    nested = json.dumps(
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
    ).encode()

    assert find_text_violation(nested, "[" * 400 + "]" * 400) is None
    assert find_text_violation(nested, "[" * 90_000 + "]" * 90_000) is not None


UNCHECKABLE = {
    "wrong": b'{"type": "nope"}',
    "remote": b'{"$ref": "http://127.0.0.1:9/schema.json"}',
    "unknown_draft": b'{"$schema": "http://example.org/own"}',
    "bad_pattern": b'{"pattern": "("}',
    "too_long": b'{"description": "' + b"x" * MAX_SCHEMA_BYTES + b'"}',
    "deep": b'{"not":' * 3_000 + b"{}" + b"}" * 3_000,
    "not_json": b"{",
}


@pytest.mark.parametrize("name", UNCHECKABLE)
def test_schema_that_cannot_be_used_is_not_checked(name: str) -> None:
    assert not is_checkable(UNCHECKABLE[name])
    assert find_text_violation(UNCHECKABLE[name], "{}") is None


def test_schema_that_refers_to_itself_ends() -> None:
    assert find_text_violation(b'{"$ref": "#"}', "3") is None


def test_pattern_that_backtracks_without_end_is_given_up() -> None:
    schema = b'{"type": "string", "pattern": "^(a|aa|(?=b))+$"}'
    start = time.perf_counter()

    assert find_text_violation(schema, json.dumps("a" * 400 + "!")) is None
    assert time.perf_counter() - start < 1


def test_one_schema_is_used_by_several_threads() -> None:
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_text_violation(TEXT.encode(), GOOD))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [None] * 4


def chat(*contents: object, reason: str = "stop", **members: object) -> dict:
    return {
        "choices": [{"message": {"content": content} | members, "finish_reason": reason} for content in contents]
    }


def tool_use(name: str, value: object) -> dict:
    return {"content": [{"type": "text", "text": "I save."}, {"type": "tool_use", "name": name, "input": value}]}


def response(*texts: str) -> dict:
    parts = [{"type": "output_text", "text": text} for text in texts]
    return {"status": "completed", "output": [{"type": "reasoning"}, {"type": "message", "content": parts}]}


BAD, REASON = '{"name": 3}', '$.name: 3 is not of type "string"'
OUTPUTS = {
    "chat": (CHAT, chat(GOOD), None, None),
    "chat_wrong": (CHAT, chat(BAD), None, REASON),
    "chat_second_choice_wrong": (CHAT, chat(GOOD, BAD), None, REASON),
    "chat_parts": (
        CHAT,
        chat([{"type": "text", "text": '{"name"'}, {"type": "text", "text": ": 3}"}]),
        None,
        REASON,
    ),
    "chat_refusal": (CHAT, chat(None, refusal="No."), None, None),
    "chat_tool_call": (CHAT, chat(None, tool_calls=[{"id": "t"}]), None, None),
    "completions": (COMPLETIONS, {"choices": [{"text": BAD}]}, None, REASON),
    "responses": (RESPONSES, response('{"name"', ": 3}"), None, REASON),
    "responses_good": (RESPONSES, response(GOOD), None, None),
    "messages_text": (MESSAGES, {"content": [{"type": "text", "text": BAD}]}, None, REASON),
    "messages_tool": (MESSAGES, tool_use("save", {"name": "a"}), "save", None),
    "messages_tool_wrong": (MESSAGES, tool_use("save", {"name": 3}), "save", REASON),
    "messages_other_tool": (MESSAGES, tool_use("load", {}), "save", "$: the answer does not call the tool 'save'"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_of_each_dialect_is_checked(name: str) -> None:
    endpoint, body, tool, expected = OUTPUTS[name]

    assert find_violation(endpoint, RequestedSchema(TEXT.encode(), tool), json.dumps(body).encode()) == expected


def test_body_with_a_lone_surrogate_is_checked() -> None:
    body = json.dumps(chat('{"name": "a"}') | {"id": "\ud800"}).encode()

    assert find_violation(CHAT, RequestedSchema(TEXT.encode()), body) is None


WHOLE, CUT = (
    judge(CHAT, 200, json.dumps(chat(BAD)).encode()),
    judge(CHAT, 200, json.dumps(chat("{", reason="length")).encode()),
)
RULES = {
    "keep": (WHOLE, REASON, {}, (None, "invalid_output", None, REASON)),
    "fits": (WHOLE, None, {"on_invalid_output": "fail"}, (None, None, None, None)),
    "fail": (WHOLE, REASON, {"on_invalid_output": "fail"}, ("invalid_output", None, "never", REASON)),
    "retry": (WHOLE, REASON, {"on_invalid_output": "retry"}, ("invalid_output", None, "once", REASON)),
    "retried": (
        WHOLE,
        REASON,
        {"on_invalid_output": "retry", "has_retried": True},
        ("invalid_output", None, "never", REASON),
    ),
    "truncated_wins": (CUT, REASON, {"on_invalid_output": "fail"}, (None, "truncated", None, None)),
    "truncated_fails": (
        CUT,
        REASON,
        {"on_truncated": "fail"},
        ("truncated", None, "never", "the answer was cut off by a limit of tokens (finish reason 'length')"),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_flawed_answer_is_kept_or_fails_by_the_options_of_its_batch(name: str) -> None:
    judgement, violation, options, expected = RULES[name]
    result = apply_output_rules(
        judgement, violation, **{"on_truncated": "keep", "on_invalid_output": "keep"} | options
    )

    assert (result.code, result.mark, result.retry, result.message) == expected
    assert (result.usage, result.finish_reason) == (judgement.usage, judgement.finish_reason)


def test_failure_is_left_as_it_is() -> None:
    failure = judge(CHAT, 500, b"")

    assert apply_output_rules(failure, REASON, on_truncated="fail", on_invalid_output="fail") is failure


def test_mark_is_part_of_a_success() -> None:
    kept: Judgement = apply_output_rules(WHOLE, REASON, on_truncated="keep", on_invalid_output="keep")

    assert (kept.mark, kept.code) == (Mark.INVALID_OUTPUT, None)

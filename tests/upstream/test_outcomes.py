"""Judgements of replies: the tables of the contract's *Outcomes*, row by row."""

import json
import math
import tracemalloc
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchline.models.outcomes import Judgement
from batchline.upstream.dialects.embeddings import count_inputs
from batchline.upstream.dialects.judge import Expectation, expectation_of, judge, judge_fully, judge_quickly

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS, MODERATIONS = "/v1/messages", "/v1/embeddings", "/v1/moderations"
LISTED = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, MODERATIONS)


class Verdict(NamedTuple):
    """The parts of a judgement that decide what happens to the request."""

    code: str | None = None
    retry: str | None = None
    mark: str | None = None
    reason: str | None = None
    out: str | None = None


def text_of(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def read(endpoint: str, body: Any, status: int = 200, expectation: Expectation = Expectation()) -> Judgement:  # noqa: B008
    text = text_of(body)
    judgement = judge(endpoint, status, text, expectation)
    quick = judge_quickly(endpoint, status, text, expectation)
    assert quick is None or quick == judge_fully(endpoint, status, text, expectation)
    json.loads(judgement.body)
    assert b"\n" not in judgement.body
    assert (judgement.code is None) == (judgement.retry is None) == (judgement.message is None)
    return judgement


def verdict(judgement: Judgement) -> Verdict:
    return Verdict(judgement.code, judgement.retry, judgement.mark, judgement.finish_reason, judgement.out_reason)


def choice(content: object = "Yes.", reason: object = "stop", **members: object) -> dict:
    return {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason} | members
        ]
    }


def spoken(reason: object = "stop", **message: object) -> dict:
    return {"choices": [{"message": message, "finish_reason": reason}]}


def text_choice(text: object, reason: object = "stop", **members: object) -> dict:
    return {"choices": [{"text": text, "finish_reason": reason} | members]}


def response(output: object, status: str = "completed", **members: object) -> dict:
    return {"object": "response", "status": status, "error": None, "output": output} | members


def said(text: str) -> dict:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def message(*content: object, reason: object = "end_turn") -> dict:
    return {"type": "message", "content": list(content), "stop_reason": reason}


def vectors(*items: object) -> dict:
    return {"object": "list", "data": [{"index": index, "embedding": item} for index, item in enumerate(items)]}


STOP, OK = Verdict(reason="stop"), Verdict()
CUT = Verdict(mark="truncated", reason="length")
EMPTY, INVALID = Verdict("empty_response", "once"), Verdict("invalid_response", "once")
FILTERED = Verdict("content_filter", "never", reason="content_filter")
TOOL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCORES = {"content": [{"token": "a", "logprob": -0.1}]}

ANSWERS: dict[str, tuple[str, Any, Verdict]] = {
    "chat": (CHAT, choice(), STOP),
    "chat_without_reason": (CHAT, choice(reason=None), OK),
    "chat_blank_content": (CHAT, choice(" "), STOP),
    "chat_parts": (CHAT, choice([{"type": "text", "text": "Yes."}]), STOP),
    "chat_tools": (
        CHAT,
        choice(None, "tool_calls", message={"content": None, "tool_calls": [TOOL]}),
        Verdict(reason="tool_calls"),
    ),
    "chat_tools_and_empty_text": (
        CHAT,
        spoken("tool_calls", content="", tool_calls=[TOOL]),
        Verdict(reason="tool_calls"),
    ),
    "chat_function_call": (
        CHAT,
        spoken("function_call", content=None, function_call={"name": "f"}),
        Verdict(reason="function_call"),
    ),
    "chat_refusal": (CHAT, spoken(content=None, refusal="I cannot."), STOP),
    "chat_audio": (CHAT, spoken(content=None, audio={"data": "aGk="}), STOP),
    "chat_images": (CHAT, spoken(content="", images=[{"type": "image_url"}]), STOP),
    "chat_logprobs": (CHAT, choice("", logprobs=SCORES), STOP),
    "chat_second_choice": (
        CHAT,
        {"choices": [*choice("")["choices"], *choice("Yes.", "eos")["choices"]]},
        Verdict(reason="eos"),
    ),
    "chat_cut_off": (CHAT, choice("Ye", "length"), CUT),
    "chat_cut_off_in_thought": (CHAT, choice(None, "length"), CUT),
    "chat_gemini_cut_off": (CHAT, choice("Ye", "MAX_TOKENS"), Verdict(mark="truncated", reason="MAX_TOKENS")),
    "chat_filtered_after_content": (CHAT, choice("Half.", "content_filter"), Verdict(reason="content_filter")),
    "chat_with_empty_error": (CHAT, choice() | {"error": {}}, STOP),
    "chat_with_null_error": (CHAT, choice() | {"error": None}, STOP),
    "chat_with_content_and_error": (CHAT, choice() | {"error": {"code": 500, "message": "late"}}, STOP),
    "chat_choice_with_null_error": (CHAT, choice(error=None), STOP),
    "completions": (COMPLETIONS, text_choice("Yes."), STOP),
    "completions_cut_off": (COMPLETIONS, text_choice("Ye", "length"), CUT),
    "completions_scores": (
        COMPLETIONS,
        text_choice("", "length", logprobs={"tokens": ["a"], "token_logprobs": [-1]}),
        CUT,
    ),
    "completions_tgi_reason": (COMPLETIONS, text_choice("Yes.", "eos_token"), Verdict(reason="eos_token")),
    "responses": (
        RESPONSES,
        response([{"type": "reasoning", "summary": []}, said("Yes.")]),
        Verdict(reason="completed"),
    ),
    "responses_tool": (RESPONSES, response([{"type": "function_call", "name": "f"}]), Verdict(reason="completed")),
    "responses_refusal": (
        RESPONSES,
        response([{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]),
        Verdict(reason="completed"),
    ),
    "responses_cut_off": (
        RESPONSES,
        response([said("Ye")], "incomplete", incomplete_details={"reason": "max_output_tokens"}),
        Verdict(mark="truncated", reason="max_output_tokens"),
    ),
    "responses_cut_off_in_thought": (
        RESPONSES,
        response([], "incomplete", incomplete_details={"reason": "max_output_tokens"}),
        Verdict(mark="truncated", reason="max_output_tokens"),
    ),
    "messages": (MESSAGES, message({"type": "text", "text": "Yes."}), Verdict(reason="end_turn")),
    "messages_tool": (
        MESSAGES,
        message({"type": "tool_use", "name": "f", "input": {}}, reason="tool_use"),
        Verdict(reason="tool_use"),
    ),
    "messages_cut_off": (
        MESSAGES,
        message({"type": "text", "text": "Ye"}, reason="max_tokens"),
        Verdict(mark="truncated", reason="max_tokens"),
    ),
    "messages_cut_off_in_thought": (
        MESSAGES,
        message({"type": "thinking", "thinking": "h"}, reason="max_tokens"),
        Verdict(mark="truncated", reason="max_tokens"),
    ),
    "messages_window_full": (
        MESSAGES,
        message({"type": "text", "text": "Ye"}, reason="model_context_window_exceeded"),
        Verdict(mark="truncated", reason="model_context_window_exceeded"),
    ),
    "embeddings": (EMBEDDINGS, vectors([0.1, -2, 3e-5], [1, 2, 3]), OK),
    "embeddings_base64": (EMBEDDINGS, vectors("AACAPw==", "AACAPw=="), OK),
    "moderations": (MODERATIONS, {"id": "m", "results": [{"flagged": False}]}, OK),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_body_that_answers_is_a_success(name: str) -> None:
    endpoint, body, expected = ANSWERS[name]

    assert verdict(read(endpoint, body, expectation=Expectation(inputs=2))) == expected


NO_ANSWERS: dict[str, tuple[str, Any, Verdict]] = {
    "chat_choices_null": (CHAT, {"id": "a", "choices": None}, EMPTY),
    "chat_choices_empty": (CHAT, {"id": "a", "choices": []}, EMPTY),
    "chat_no_choices": (CHAT, {"id": "a"}, EMPTY),
    "chat_choices_of_nulls": (CHAT, {"choices": [None]}, EMPTY),
    "chat_choices_object": (CHAT, {"choices": {"message": {"content": "x"}}}, INVALID),
    "chat_no_message": (CHAT, {"choices": [{"finish_reason": "stop"}]}, EMPTY._replace(reason="stop")),
    "chat_null_content": (CHAT, choice(None), EMPTY._replace(reason="stop")),
    "chat_empty_content": (CHAT, choice(""), EMPTY._replace(reason="stop")),
    "chat_only_thoughts": (CHAT, spoken(content=None, reasoning_content="hm"), EMPTY._replace(reason="stop")),
    "chat_thought_part": (CHAT, choice([{"type": "thinking", "thinking": []}]), EMPTY._replace(reason="stop")),
    "chat_empty_part": (CHAT, choice([{"type": "text", "text": ""}]), EMPTY._replace(reason="stop")),
    "chat_no_tools": (CHAT, choice(None, "tool_calls", tool_calls=[]), EMPTY._replace(reason="tool_calls")),
    "chat_empty_logprobs": (CHAT, choice("", logprobs={"content": []}), EMPTY._replace(reason="stop")),
    "chat_filtered": (CHAT, choice(None, "content_filter"), FILTERED),
    "chat_gemini_filtered": (CHAT, choice(None, "SAFETY"), FILTERED._replace(reason="SAFETY")),
    "chat_gemini_face_filtered": (
        CHAT,
        choice(None, "content_filter: RECITATION"),
        FILTERED._replace(reason="content_filter: RECITATION"),
    ),
    "chat_prompt_blocked": (CHAT, {"promptFeedback": {"blockReason": "SAFETY"}}, FILTERED._replace(reason=None)),
    "chat_out_of_resources": (
        CHAT,
        choice("Half", "insufficient_system_resource"),
        INVALID._replace(reason="insufficient_system_resource"),
    ),
    "chat_broke_off": (CHAT, choice("Half", "error"), INVALID._replace(reason="error")),
    "completions_empty": (COMPLETIONS, text_choice(""), EMPTY._replace(reason="stop")),
    "completions_filtered": (COMPLETIONS, text_choice("", "content_filter"), FILTERED),
    "responses_no_status": (RESPONSES, {"output": [said("Yes.")]}, INVALID),
    "responses_queued": (RESPONSES, response([], "queued"), INVALID),
    "responses_cancelled": (RESPONSES, response([], "cancelled"), INVALID),
    "responses_only_reasoning": (RESPONSES, response([{"type": "reasoning"}]), EMPTY._replace(reason="completed")),
    "responses_no_output": (RESPONSES, response([]), EMPTY),
    "responses_filtered": (
        RESPONSES,
        response([], "incomplete", incomplete_details={"reason": "content_filter"}),
        FILTERED,
    ),
    "messages_empty": (MESSAGES, message(), EMPTY._replace(reason="end_turn")),
    "messages_empty_text": (MESSAGES, message({"type": "text", "text": ""}), EMPTY._replace(reason="end_turn")),
    "messages_refusal": (MESSAGES, message(reason="refusal"), FILTERED._replace(reason="refusal")),
    "messages_null": (MESSAGES, {"content": None}, EMPTY),
    "messages_text_content": (MESSAGES, {"content": "Yes.", "stop_reason": "end_turn"}, INVALID),
    "embeddings_none": (EMBEDDINGS, vectors(), EMPTY),
    "embeddings_too_few": (EMBEDDINGS, vectors([1.0]), INVALID),
    "embeddings_too_many": (EMBEDDINGS, vectors([1], [1], [1]), INVALID),
    "embeddings_null_number": (EMBEDDINGS, vectors([1, None], [1, 2]), INVALID),
    "embeddings_infinite": (EMBEDDINGS, b'{"data":[{"embedding":[1e999]},{"embedding":[1]}]}', INVALID),
    "embeddings_huge_integer": (EMBEDDINGS, vectors([10**400], [1]), INVALID),
    "embeddings_boolean": (EMBEDDINGS, vectors([True], [1]), INVALID),
    "embeddings_empty_vector": (EMBEDDINGS, vectors([], [1]), INVALID),
    "embeddings_empty_text": (EMBEDDINGS, vectors("", "AAAA"), INVALID),
    "embeddings_not_base64": (EMBEDDINGS, vectors("no vector", "AAAA"), INVALID),
    "embeddings_matrix": (EMBEDDINGS, vectors([[1.0]], [[1.0]]), INVALID),
    "moderations_empty": (MODERATIONS, {"results": []}, EMPTY),
    "moderations_null": (MODERATIONS, {"results": [None]}, EMPTY),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_2xx_body_without_answer_is_a_failure(name: str) -> None:
    endpoint, body, expected = NO_ANSWERS[name]

    assert verdict(read(endpoint, body, expectation=Expectation(inputs=2))) == expected


@pytest.mark.parametrize("endpoint", LISTED)
@pytest.mark.parametrize("body", ["{}", "null", "[]", '""', "", " \n "])
def test_empty_2xx_body_is_tried_once_more(endpoint: str, body: str) -> None:
    assert verdict(read(endpoint, body)) == EMPTY


@pytest.mark.parametrize("endpoint", LISTED)
@pytest.mark.parametrize("body", ["3", "true", '"text"', "[1, 2]"])
def test_2xx_body_that_is_no_object_is_invalid(endpoint: str, body: str) -> None:
    assert verdict(read(endpoint, body)) == INVALID


NOT_JSON = {
    "html": b"<!DOCTYPE html>\n<html><title>Bad gateway</title></html>",
    "cut_short": text_of(choice())[:-3],
    "two_values": text_of(choice()) * 2,
    "nan": b'{"choices": [{"message": {"content": "a"}, "logprob": NaN}]}',
    "infinity": b'{"choices": [{"message": {"content": "a"}, "logprob": -Infinity}]}',
    "not_utf8": b'{"choices": [{"message": {"content": "a"}}], "x": "\xff"}',
    "utf16": '{"choices": []}'.encode("utf-16"),
    "raw_newline_in_a_string": b'{"choices": [{"message": {"content": "a\nb"}}]}',
    "raw_nul": b'{"choices": [{"message": {"content": "a\x00b"}}]}',
    "surrogate_as_bytes": b'{"choices": [{"message": {"content": "\xed\xa0\x80"}}]}',
    "leading_zero": b'{"choices": [{"message": {"content": "a"}}], "x": 01}',
    "deep": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"[" * 600 + b"]" * 600 + b"}",
    "deeper": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long_number": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"9" * 4_301 + b"}",
    "deep_after_a_surrogate": b'{"a": "\\ud800", "b": ' + b"[" * 600 + b"]" * 600 + b"}",
    "long_number_after_a_surrogate": b'{"a": "\\ud800", "b": ' + b"9" * 4_301 + b"}",
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_2xx_body_that_is_not_json_is_tried_once_more(name: str) -> None:
    judgement = read(CHAT, NOT_JSON[name])

    assert verdict(judgement) == INVALID
    assert json.loads(judgement.body) == NOT_JSON[name].decode(errors="replace")
    assert f"{len(NOT_JSON[name])} bytes" in judgement.message


@pytest.mark.parametrize("name", NOT_JSON)
def test_error_body_that_is_not_json_is_kept_as_a_string(name: str) -> None:
    judgement = read(CHAT, NOT_JSON[name], 500)

    assert verdict(judgement) == BROKEN
    assert json.loads(judgement.body) == NOT_JSON[name].decode(errors="replace")


@pytest.mark.parametrize(
    ("name", "words"), [("deeper", "nested too deeply"), ("long_number", "over 4,300 digits")]
)
def test_message_names_what_common_parsers_cannot_read(name: str, words: str) -> None:
    assert words in read(CHAT, NOT_JSON[name]).message


UNUSUAL = {
    "lone_surrogate": b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
    "lone_surrogate_in_reason": b'{"choices": [{"message": {"content": "a"}, "finish_reason": "\\ud800"}]}',
    "lone_surrogate_in_model": b'{"choices": [{"message": {"content": "a"}}], "model": "\\ud800"}',
    "key_twice": b'{"choices": [], "choices": [{"message": {"content": "a"}}]}',
    "key_of_another_type_first": b'{"choices": 3, "choices": [{"message": {"content": "a"}}]}',
    "huge_exponent": b'{"choices": [{"message": {"content": "a"}}], "x": 1e999999}',
    "nested_512_deep": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"[" * 511 + b"]" * 511 + b"}",
    "number_of_4300_digits": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"9" * 4_300 + b"}",
    "many_digits": b'{"choices": [{"message": {"content": "a"}}], "x": 0.1000000000000000055511151231257827}',
    "digits_in_a_string": b'{"choices": [{"message": {"content": "' + b"9" * 10_000 + b'"}}]}',
    "escapes": b'{"choices": [{"message": {"content": "\\u0041\\/\\n\\u2028"}}]}',
    "line_separators": '{"choices": [{"message": {"content": "\u2028\u2029\u0085"}}]}'.encode(),
    "ten_megabytes": b'{"choices": [{"message": {"content": "' + b"x" * 10_000_000 + b'"}}]}',
    "reason_object": b'{"choices": [{"message": {"content": "a"}, "finish_reason": {"type": "stop"}}]}',
    "reason_number": b'{"choices": [{"message": {"content": "a"}, "finish_reason": 1}]}',
    "usage_text": b'{"choices": [{"message": {"content": "a"}}], "usage": "none"}',
    "model_number": b'{"choices": [{"message": {"content": "a"}}], "model": 4}',
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_json_that_answers_is_a_success_kept_byte_for_byte(name: str) -> None:
    judgement = read(CHAT, UNUSUAL[name])

    assert (judgement.code, judgement.body) == (None, UNUSUAL[name])
    (judgement.finish_reason or "").encode()
    (judgement.model or "").encode()


def test_last_of_equal_keys_counts() -> None:
    assert read(CHAT, b'{"choices": [{"message": {"content": "a"}}], "choices": []}').code == "empty_response"
    assert read(CHAT, b'{"choices": [{"message": {"content": "a", "content": ""}}]}').code == "empty_response"


ODD_BUT_JSON = {
    "answer_elsewhere": {"id": "a", "text": "Yes."},
    "empty": {},
    "list": [1],
    "choices_empty": {"choices": []},
}


@pytest.mark.parametrize("name", ODD_BUT_JSON)
def test_any_json_but_an_error_is_a_success_if_the_upstream_is_set_so(name: str) -> None:
    assert read(CHAT, ODD_BUT_JSON[name], expectation=Expectation(any_answer=True)).code is None
    assert read("/v1/images/generations", ODD_BUT_JSON[name]).code is None


@pytest.mark.parametrize(
    "body", [{"error": {"message": "x", "code": 400}}, {"detail": "x"}, {"error": "x"}], ids=str
)
def test_error_object_stays_a_failure_where_any_json_is_a_success(body: dict) -> None:
    assert read(CHAT, body, expectation=Expectation(any_answer=True)).code is not None
    assert read("/v1/images/generations", body).code is not None


def error(code: object = None, kind: object = None, text: str = "no") -> dict:
    return {"error": {"message": text, "type": kind, "code": code}}


LIMITED, BROKEN = Verdict("rate_limited", "as_status"), Verdict("server_error", "as_status")
REFUSED = Verdict("invalid_request", "never")
NO_QUOTA = Verdict("invalid_request", "upstream_out", out="quota")
NO_KEY = Verdict("invalid_request", "upstream_out", out="unauthorized")
TOO_LONG = Verdict("context_length_exceeded", "never")
BLOCKED = Verdict("content_filter", "never")

ERRORS_INSIDE: dict[str, tuple[Any, Verdict]] = {
    "silent": (error(), INVALID),
    "text": ({"error": "model crashed"}, INVALID),
    "number": ({"error": 1.5}, INVALID),
    "status_of_a_strange_type": ({"status": ["failed"], "error": "x", "type": {}}, INVALID),
    "true": ({"error": True, "message": "crashed"}, INVALID),
    "unknown_words": (error("E1234", "strange"), INVALID),
    "number_429": (error(429), LIMITED),
    "digits_429": (error("429"), LIMITED),
    "rate_limit": (error("rate_limit_exceeded", "requests"), LIMITED),
    "google_status": ({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "x"}}, LIMITED),
    "google_list": ([{"error": {"code": 503, "status": "UNAVAILABLE", "message": "x"}}], BROKEN),
    "overloaded": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, BROKEN),
    "number_502": (error(502), BROKEN),
    "server_error": (error("server_error"), BROKEN),
    "vllm": ({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, REFUSED),
    "vllm_silent": ({"object": "error", "message": "bad"}, INVALID),
    "code_and_message": ({"code": 500, "message": "bad"}, BROKEN),
    "code_and_message_without_status": ({"code": "1301", "message": "bad"}, INVALID),
    "detail": ({"detail": "Not Found"}, INVALID),
    "detail_list": ({"detail": [{"loc": ["body", "n"], "msg": "too small"}]}, INVALID),
    "errors": ({"errors": [{"code": 429, "message": "slow"}]}, LIMITED),
    "choice": ({"choices": [{"error": {"code": 502, "message": "provider died"}}]}, BROKEN),
    "choice_with_content": (
        {"choices": [{"message": {"content": "Ha"}, "error": {"code": 502, "message": "died"}}]},
        BROKEN,
    ),
    "choices_empty_beside_it": ({"choices": [], "error": {"code": 429, "message": "slow"}}, LIMITED),
    "cut_off_beside_it": (choice(None, "length") | error(500), BROKEN._replace(reason="length")),
    "failed": ({"status": "failed", "error": {"code": "server_error", "message": "x"}, "output": []}, BROKEN),
    "minimax": ({"choices": None, "base_resp": {"status_code": 2013, "status_msg": "invalid params"}}, INVALID),
    "failed_silently": ({"status": "failed", "error": None, "output": []}, INVALID),
    "timeout": (error("timeout"), Verdict("timeout", "as_status")),
    "model_not_found": (error("model_not_found", "invalid_request_error"), REFUSED),
    "quota": (error("insufficient_quota", "insufficient_quota"), NO_QUOTA),
    "credits": (error(402, text="Insufficient credits"), NO_QUOTA),
    "key": (error("invalid_api_key", "invalid_request_error"), NO_KEY),
    "number_401": (error(401), NO_KEY),
    "forbidden": (error(403), REFUSED._replace(out="unauthorized")),
    "context": (error("context_length_exceeded", "invalid_request_error"), TOO_LONG),
    "context_in_words": (error(text="This model's maximum context length is 8192 tokens."), TOO_LONG),
    "filter": (error("content_filter"), BLOCKED),
    "nested": ({"error": {"message": json.dumps(error(429)), "code": 500}}, LIMITED),
}


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@pytest.mark.parametrize("name", ERRORS_INSIDE)
def test_error_inside_a_2xx_is_judged_by_its_own_code(endpoint: str, name: str) -> None:
    body, expected = ERRORS_INSIDE[name]
    judgement = read(endpoint, body)

    if endpoint not in {CHAT, COMPLETIONS}:
        expected = expected._replace(reason=None)
    assert verdict(judgement) == expected
    assert judgement.message


STATUSES: dict[str, tuple[int, Any, Verdict]] = {
    "bad_request": (400, error("invalid_value", "invalid_request_error"), REFUSED),
    "unauthorized": (401, error("invalid_api_key"), NO_KEY),
    "unauthorized_silently": (401, b"", NO_KEY),
    "google_key": (
        400,
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
        NO_KEY,
    ),
    "payment": (402, error(402, text="Insufficient Balance"), NO_QUOTA),
    "payment_silently": (402, b"", NO_QUOTA),
    "forbidden": (403, error(text="no access"), REFUSED._replace(out="unauthorized")),
    "forbidden_billing": (403, error(text="This API method requires billing to be enabled."), NO_QUOTA),
    "key_limit": (403, error(403, text="Key limit exceeded (total limit)."), NO_QUOTA),
    "moderated": (403, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["x"]}}}, BLOCKED),
    "not_found": (404, error("model_not_found"), REFUSED),
    "timeout": (408, b"", Verdict("timeout", "as_status")),
    "conflict": (409, b"", Verdict("invalid_request", "as_status")),
    "too_large": (413, b"<html><title>413 Request Entity Too Large</title></html>", REFUSED),
    "too_long_413": (413, error(text="input is too long for this model's context window"), TOO_LONG),
    "tgi_too_long": (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
            "error_type": "validation",
        },
        TOO_LONG,
    ),
    "fastapi": (422, {"detail": [{"loc": ["body", "n"], "msg": "too small"}]}, REFUSED),
    "too_early": (425, b"", BROKEN),
    "rate_limited": (429, error("rate_limit_exceeded", "tokens"), LIMITED),
    "rate_limited_silently": (429, b"slow down", LIMITED),
    "quota": (429, error("insufficient_quota", "insufficient_quota"), NO_QUOTA._replace(code="rate_limited")),
    "quota_in_words": (
        429,
        error(text="You exceeded your current quota, please check your plan and billing details."),
        NO_QUOTA._replace(code="rate_limited"),
    ),
    "rate_limit_that_advertises_billing": (
        429,
        error(
            "rate_limit_exceeded",
            text="Rate limit reached for m on requests per min. Limit: 3 / min. Please try again in 20s. Please "
            "add a payment method to your account to increase your rate limit. Visit example.com/account/billing.",
        ),
        LIMITED,
    ),
    "gemini_per_minute": (
        429,
        [{"error": {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}}],
        LIMITED,
    ),
    "anthropic_credit": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access"},
        },
        NO_QUOTA,
    ),
    "anthropic_limit": (400, error(text="You have reached your specified API usage limits."), NO_QUOTA),
    "budget": (400, error("budget_exceeded", "budget_exceeded"), NO_QUOTA),
    "context": (400, error("context_length_exceeded"), TOO_LONG),
    "anthropic_context": (
        400,
        error(kind="invalid_request_error", text="prompt is too long: 210000 tokens > 200000 maximum"),
        TOO_LONG,
    ),
    "gemini_context": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (1100000) exceeds the maximum number of tokens allowed",
                }
            }
        ],
        TOO_LONG,
    ),
    "llama_context": (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
        TOO_LONG,
    ),
    "vllm_context": (
        400,
        {
            "object": "error",
            "message": "The decoder prompt (length 5000) is longer than the maximum model length of 2048.",
            "code": 400,
        },
        TOO_LONG,
    ),
    "max_tokens_too_large": (
        400,
        error("invalid_value", text="max_tokens is too large: 9000. At most 4096 are supported."),
        REFUSED,
    ),
    "azure_filter": (
        400,
        {
            "error": {
                "message": "filtered",
                "code": "content_filter",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        BLOCKED,
    ),
    "filter_inside": (
        400,
        {"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        BLOCKED,
    ),
    "server_error": (500, error("context_length_exceeded"), BROKEN),
    "bad_gateway": (502, b"<html><head><title>502 Bad Gateway</title></head></html>", BROKEN),
    "unavailable": (503, {"error": {"message": "Loading model", "type": "unavailable_error"}}, BROKEN),
    "overloaded": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, BROKEN),
    "redirect": (301, b"", Verdict("invalid_response", "never")),
    "informational": (103, b"", Verdict("invalid_response", "never")),
    "no_content": (204, b"", Verdict("empty_response", "never")),
}


@pytest.mark.parametrize("name", STATUSES)
def test_reply_is_judged_by_its_status_and_words(name: str) -> None:
    status, body, expected = STATUSES[name]
    judgement = read(CHAT, body, status)

    assert verdict(judgement) == expected
    assert judgement.acts_as == status


def test_every_other_client_error_is_never_tried_again() -> None:
    for status in {*range(400, 500)} - {401, 402, 408, 409, 425, 429}:
        assert read(CHAT, b"{}", status).retry == "never", status


def test_every_server_error_is_tried_again() -> None:
    assert {read(CHAT, b"{}", status).retry for status in range(500, 600)} == {"as_status"}


def test_error_inside_any_2xx_is_a_failure_with_its_body() -> None:
    for status in (200, 201, 202, 299):
        judgement = read(CHAT, error(429), status)
        assert (judgement.code, json.loads(judgement.body)) == ("rate_limited", error(429)), status


def test_error_inside_a_2xx_acts_as_the_status_that_it_names() -> None:
    assert [read(CHAT, error(code)).acts_as for code in (429, 503, "rate_limit_exceeded", None)] == [
        429,
        503,
        429,
        200,
    ]


SAYINGS: dict[str, tuple[Any, str]] = {
    "openai": (error(text="no such model"), "no such model"),
    "message": ({"object": "error", "message": "too long"}, "too long"),
    "detail": ({"detail": "Not Found"}, "Not Found"),
    "detail_list": (
        {"detail": [{"loc": ["body", "n"], "msg": "too small"}, {"loc": ["body", "top_p", 0], "msg": "too big"}]},
        "body.n: too small; body.top_p.0: too big",
    ),
    "list_of_errors": ([{"error": {"message": "INVALID"}}], "INVALID"),
    "errors": ({"errors": [{"message": "first"}, {"message": "second"}]}, "first"),
    "error_as_text": ({"error": "model not loaded"}, "model not loaded"),
    "choice": ({"choices": [{"error": {"message": "provider died"}}]}, "provider died"),
    "minimax": ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "login fail"),
    "nested": ({"error": {"message": json.dumps(error(text="inner")), "code": 500}}, "inner"),
    "json_text": ('"broken"', "broken"),
    "plain_text": ("upstream connect error", "the upstream answered 502: upstream connect error"),
    "long_text": ("x" * 900, "the upstream answered 502: " + "x" * 200),
    "page": (
        "<html><head><title>\n502 Bad &amp; Gateway </title></head>",
        "the upstream answered 502: HTML page '502 Bad & Gateway'",
    ),
    "heading": ("<html><body><h1>Bad <b>Gateway</b></h1>", "the upstream answered 502: HTML page 'Bad Gateway'"),
    "page_without_title": ("<html><body>oops", "the upstream answered 502: <html><body>oops"),
    "nothing": ("", "502 with an empty body"),
    "empty_object": ("{}", "the upstream answered 502: {}"),
    "message_null": ({"error": {"message": None}}, 'the upstream answered 502: {"error": {"message": null}}'),
    "lone_surrogate": (b'{"error": {"message": "a\\ud800b"}}', "a?b"),
    "event": ('event: error\ndata: {"error": {"message": "in a stream"}}\n\n', "in a stream"),
}


@pytest.mark.parametrize("name", SAYINGS)
def test_message_of_an_error_comes_from_where_the_server_put_it(name: str) -> None:
    body, expected = SAYINGS[name]

    assert read(CHAT, body, 502).message == expected


def test_message_is_shortened() -> None:
    assert len(read(CHAT, error(text="x" * 2_000_000), 400).message) == 500


def test_message_of_a_2xx_without_answer_names_the_problem() -> None:
    assert read(CHAT, b"").message == "200 with an empty body"
    assert "finish reason 'stop'" in read(CHAT, choice("")).message
    assert "2 vectors came for 3 inputs" in read(EMBEDDINGS, vectors([1], [2]), expectation=Expectation(3)).message
    assert "HTML page 'Bad gateway'" in read(CHAT, NOT_JSON["html"]).message


def test_message_of_a_timeout_at_a_proxy_names_the_remedy() -> None:
    assert "stream = true" in read(CHAT, b"<html><title>A timeout occurred</title></html>", 524).message
    assert "stream = true" in read(CHAT, b"", 408).message
    assert read(CHAT, error(text="slow"), 408).message == "slow"


def test_message_of_a_redirect_names_its_target() -> None:
    judgement = judge(CHAT, 308, b"", location="https://other.example/v1")

    assert "https://other.example/v1" in judgement.message


INPUTS = {
    '{"input": "a"}': 1,
    '{"input": ["a", "b"]}': 2,
    '{"input": [1, 2, 3]}': 1,
    '{"input": [[1, 2], [3]]}': 2,
    '{"input": [{"text": "a"}, {"image": "b"}]}': 2,
    '{"input": []}': 0,
    '{"input": 3}': None,
    '{"model": "m"}': None,
}


@pytest.mark.parametrize("body", INPUTS)
def test_inputs_of_an_embeddings_request_are_counted(body: str) -> None:
    assert count_inputs(body.encode()) == INPUTS[body]
    assert expectation_of(EMBEDDINGS, msgspec.Raw(body.encode())).inputs == INPUTS[body]
    assert expectation_of(CHAT, body.encode(), any_answer=True) == Expectation(None, any_answer=True)


def test_pretty_printed_answer_becomes_one_line() -> None:
    body = json.dumps(choice(), indent=2)
    judgement = read(CHAT, body.replace("\n", "\r\n"))

    assert (judgement.code, json.loads(judgement.body)) == (None, choice())


def test_line_breaks_between_tokens_become_spaces() -> None:
    pretty = b'{\r\n  "choices": [\n    {"message":\r{"content": "a\\nb"}, "x": 1.50}\n  ]\n}'

    assert read(CHAT, pretty).body == pretty.replace(b"\r", b" ").replace(b"\n", b" ")


def test_usage_beside_lone_surrogates_is_read() -> None:
    body = choice("\ud800") | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    assert read(CHAT, body).usage.total_tokens == 3


def test_usage_of_failures_is_read() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    for body, status in (
        (choice("") | {"usage": usage}, 200),
        (error(500) | {"usage": usage}, 200),
        (error() | {"usage": usage}, 500),
    ):
        assert read(CHAT, body, status).usage.total_tokens == 7


NAMES = st.sampled_from(
    ["error", "choices", "message", "content", "type", "status", "usage", "detail", "data", "output"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES | st.text(), inner),
    max_leaves=30,
)
STATUS_CODES = st.sampled_from([200, 200, 200, 204, 302, 400, 401, 429, 503]) | st.integers(100, 999)


@given(
    body=st.binary() | VALUES.map(json.dumps).map(str.encode),
    status=STATUS_CODES,
    endpoint=st.sampled_from(LISTED),
)
@example(body=b"\xff\xfe", status=200, endpoint=CHAT)
@example(body=b"-", status=200, endpoint=CHAT)
@example(body=b'"\\ud800"', status=400, endpoint=CHAT)
@example(body=b'{"error": "\\ud800\\udc00\\ud800"}', status=200, endpoint=CHAT)
@example(body=b"[" * 10_000, status=200, endpoint=CHAT)
@example(body=b'{"usage":' * 10_000, status=500, endpoint=CHAT)
@example(body=b'{"error":' + b"[" * 10_000 + b"]" * 10_000 + b"}", status=200, endpoint=CHAT)
@example(body=b'{"error":{"message":"' + b'{\\"error\\":' * 5_000 + b'"}}', status=400, endpoint=CHAT)
@example(
    body=b'data: {"choices":[{"delta":{"content":[]}}]}\n\ndata: {"choices":[{"delta":{"content":"a"}}]}',
    status=200,
    endpoint=CHAT,
)
@example(body=b'data: {"choices":3}\n\ndata: {"choices":{"a":1}}', status=200, endpoint=CHAT)
@example(body=b'data: {"type":"message_start","message":[]}\n\ndata: {"type":[]}', status=200, endpoint=MESSAGES)
@example(body=b'data: {"type":{}}\n\ndata: {"type":[]}', status=200, endpoint=RESPONSES)
def test_any_bytes_get_a_judgement_with_one_line_of_json(body: bytes, status: int, endpoint: str) -> None:
    judgement = judge(endpoint, status, body)

    assert b"\n" not in judgement.body
    assert b"\r" not in judgement.body
    json.loads(judgement.body.decode())
    (judgement.message or "").encode()


PIECES = st.dictionaries(
    st.sampled_from(["choices", "delta", "index", "type", "message", "content_block", "usage"]), VALUES
)


@given(events=st.lists(PIECES, min_size=1), endpoint=st.sampled_from(LISTED))
def test_any_stream_of_events_gets_a_judgement(events: list[dict], endpoint: str) -> None:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()

    json.loads(judge(endpoint, 200, body).body)


def json_texts() -> st.SearchStrategy[str]:
    """JSON as servers write it: any value, compact or indented."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        scalars | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(NAMES | st.text(), inner),
        max_leaves=20,
    )
    return st.builds(
        lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
        values,
        st.sampled_from([None, 0, 2]),
        st.booleans(),
    ).filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))


@given(text=json_texts(), status=st.sampled_from([200, 400, 429, 500]), endpoint=st.sampled_from(LISTED))
def test_any_json_keeps_its_value(text: str, status: int, endpoint: str) -> None:
    assert json.loads(judge(endpoint, status, text.encode()).body) == json.loads(text)


@given(text=json_texts(), cut=st.floats(0, 1, exclude_max=True))
def test_json_that_was_cut_is_kept_as_a_string(text: str, cut: float) -> None:
    part = text.encode()[: math.floor(len(text.encode()) * cut)]
    judgement = judge(CHAT, 200, part)

    try:
        value = json.loads(part)
    except ValueError:
        assert judgement.code in {"invalid_response", "empty_response"}
        assert json.loads(judgement.body) == part.decode(errors="replace")
    else:
        assert json.loads(judgement.body) == value


BRACKETS = "[" + "[]," * 400_000 + "1]"


def test_long_unusual_answers_are_judged_without_decoding_all_of_them() -> None:
    """With a lone surrogate, so that the fast decoder refuses them; 1.2 MB of brackets take 40 MB as objects."""
    choice = '{"message":{"content":"\\ud800"},"finish_reason":"length"}'
    cases = {
        f'{{"choices":[{choice}],"x":{BRACKETS}}}': (None, "truncated"),
        f'{{"choices":{BRACKETS[:-1]},"\\ud800"]}}': (None, None),
        f'{{"error":{{"message":"\\ud800 busy","code":429}},"x":{BRACKETS}}}': ("rate_limited", None),
        f'{{"x":{BRACKETS[:-1]},"\\ud800"]}}': ("empty_response", None),
    }
    tracemalloc.start()
    try:
        for body, expected in cases.items():
            judgement = judge(CHAT, 200, body.encode())
            assert (judgement.code, judgement.mark) == expected, body[:80]
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()

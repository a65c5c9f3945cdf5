"""What an upstream's reply is read as: its fault, its text for the output file, and its tokens."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchline.models.usage import Usage
from batchline.upstream.call_results import ParsedReply, parse_reply
from batchline.upstream.transports.base import HttpReply


def read(body: bytes | str | dict, status: int = 200) -> ParsedReply:
    text = json.dumps(body) if isinstance(body, dict) else body
    return parse_reply(HttpReply(status, text if isinstance(text, bytes) else text.encode(), 0.1))


def usage_of(usage: dict) -> Usage | None:
    return read({"id": "a", "choices": [], "usage": usage}).usage


CHAT = {
    "prompt_tokens": 10,
    "completion_tokens": 30,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 25, "accepted_prediction_tokens": 0},
}
RESPONSES = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 25},
    "total_tokens": 40,
}
ANTHROPIC = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 4,
    "output_tokens": 30,
    "service_tier": "standard",
}
USAGES = {
    "chat": (CHAT, Usage(10, 30, 40, 25, 4)),
    "responses": (RESPONSES, Usage(10, 30, 40, 25, 4)),
    "cache_writes": (
        CHAT | {"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}},
        Usage(10, 30, 40, 25, 4, 5),
    ),
    "embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0, 8, None, 0)),
    "anthropic_cache_tokens_are_input": (ANTHROPIC, Usage(17, 30, 47, None, 4, 3)),
    "anthropic_without_cache": ({"input_tokens": 10, "output_tokens": 30}, Usage(10, 30, 40, None, 0)),
    "no_total": ({"prompt_tokens": 10, "completion_tokens": 30}, Usage(10, 30, 40, None, 0)),
    "details_null": (
        CHAT | {"prompt_tokens_details": None, "completion_tokens_details": None},
        Usage(10, 30, 40, None, 0),
    ),
    "details_empty": ({**CHAT, "prompt_tokens_details": {}}, Usage(10, 30, 40, 25, 0)),
    "no_reasoning_is_told_as_zero": (
        CHAT | {"completion_tokens_details": {"reasoning_tokens": 0}},
        Usage(10, 30, 40, 0, 4),
    ),
    "completion_null": (
        {"prompt_tokens": 8, "completion_tokens": None, "total_tokens": 8},
        Usage(8, 0, 8, None, 0),
    ),
    "unknown_members": (CHAT | {"cost": 0.1, "queue_time": None}, Usage(10, 30, 40, 25, 4)),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0, None, 0)),
}


@pytest.mark.parametrize("name", USAGES)
def test_usage_is_parsed_in_each_dialect(name: str) -> None:
    given_usage, expected = USAGES[name]

    assert usage_of(given_usage) == expected


NO_USAGES = {
    "null": None,
    "empty": {},
    "a_list": [1],
    "a_number": 7,
    "strings": {"prompt_tokens": "ten", "completion_tokens": "thirty"},
    "negative": {"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2},
    "beyond_any_count": {"prompt_tokens": 2**63, "completion_tokens": 2**70},
    "fractions": {"prompt_tokens": 1.5},
}


@pytest.mark.parametrize("name", NO_USAGES)
def test_usage_without_valid_counts_is_none_and_reply_succeeds(name: str) -> None:
    reading = read({"id": "a", "choices": [], "usage": NO_USAGES[name]})

    assert (reading.code, reading.usage) == (None, None)


def test_usage_accepts_whole_numbers_written_as_floats() -> None:
    assert usage_of({"prompt_tokens": 10.0, "completion_tokens": 30.0}) == Usage(10, 30, 40, None, 0)


def test_usage_with_one_invalid_field_keeps_the_others() -> None:
    odd = usage_of(CHAT | {"prompt_tokens_details": {"cached_tokens": "four"}})

    assert odd is not None
    assert (odd.prompt_tokens, odd.completion_tokens, odd.total_tokens) == (10, 30, 40)


def test_cached_tokens_are_limited_to_the_input_tokens() -> None:
    usage = usage_of({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 1}})
    assert (usage.cached_tokens, usage.cache_write_tokens) == (3, 0)


def test_usage_of_error_reply_is_parsed() -> None:
    assert read({"error": {"message": "late"}, "usage": CHAT}, 500).usage.total_tokens == 40


ANSWERS = {
    "chat": {"choices": [{"message": {"content": "Yes."}}]},
    "no_known_member": {"anything": 1},
    "error_null": {"error": None, "choices": []},
    "error_null_alone": {"error": None},
    "responses_that_tell_of_no_error": {"object": "response", "error": None, "output": []},
    "error_beside_choices": {"error": {"message": "one choice failed"}, "choices": [{"index": 0}]},
    "error_beside_data": {"error": {"message": "x"}, "data": []},
    "error_empty": {"error": {}, "id": "a"},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_2xx_reply_with_content_succeeds(name: str) -> None:
    reading = read(ANSWERS[name])

    assert (reading.code, reading.message, json.loads(reading.body)) == (None, None, ANSWERS[name])


@pytest.mark.parametrize("text", ["[]", "[1, 2]", "3", '"text"', "true", "null"])
def test_2xx_reply_with_non_object_json_succeeds(text: str) -> None:
    assert read(text) == ParsedReply(None, text.encode(), None, None)


@pytest.mark.parametrize("status", [200, 201, 202, 299])
@pytest.mark.parametrize(
    "error", [{"message": "overloaded", "code": 500}, {"type": "x"}, "overloaded", ["a"], True, 500], ids=str
)
def test_2xx_reply_with_only_an_error_is_invalid_response(status: int, error: object) -> None:
    reading = read({"error": error}, status)

    assert reading.code == "invalid_response"
    assert json.loads(reading.body) == {"error": error}
    assert reading.message


@pytest.mark.parametrize("empty", [None, []], ids=["null", "empty"])
def test_2xx_reply_with_error_and_null_content_is_invalid_response(empty: object) -> None:
    reading = read({"error": {"message": "x"}, "choices": empty})

    assert (reading.code is None) == (empty is not None)


NOT_JSON = {
    "nothing": b"",
    "blanks": b" \n ",
    "html": b"<!DOCTYPE html>\n<html>Bad gateway</html>",
    "cut_short": b'{"choices": [{"mess',
    "two_values": b'{"choices": []}{"choices": []}',
    "event_stream": b'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "nan": b'{"choices": [], "logprob": NaN}',
    "infinity": b'{"choices": [], "logprob": -Infinity}',
    "single_quotes": b"{'choices': []}",
    "not_utf8": b'{"choices": ["\xff"]}',
    "cut_within_a_character": '{"choices": ["é"]}'.encode()[:-4],
    "utf16": '{"choices": []}'.encode("utf-16"),
    "byte_order_mark": b'\xef\xbb\xbf{"choices": []}',
    "raw_newline_in_a_string": b'{"choices": ["a\nb"]}',
    "raw_nul": b'{"choices": ["\x00"]}',
    "unpaired_surrogate_as_bytes": b'{"choices": ["\xed\xa0\x80"]}',
    "leading_zero": b'{"choices": [01]}',
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_2xx_reply_without_json_is_invalid_response_kept_as_string(name: str) -> None:
    body = NOT_JSON[name]

    reading = read(body)

    assert reading.code == "invalid_response"
    assert json.loads(reading.body) == body.decode(errors="replace")
    assert f"{len(body)} bytes" in reading.message


def test_error_message_never_contains_the_body() -> None:
    assert "patient" not in read(b"<p>the patient's file</p>").message


ERRORS = {
    "openai": ({"error": {"message": "no such model", "type": "invalid_request_error"}}, "no such model"),
    "fastapi_detail": ({"detail": "Not Found"}, "Not Found"),
    "top_level_message": ({"object": "error", "message": "too long", "code": 40303}, "too long"),
    "error_as_text": ({"error": "model not loaded"}, "model not loaded"),
    "anthropic": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "Overloaded"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_message_comes_from_the_error_body(name: str) -> None:
    body, words = ERRORS[name]

    reading = read(body, 400)

    assert (reading.code, reading.message, json.loads(reading.body)) == ("invalid_request", words, body)


MUTE = {
    "plain_text": b"upstream connect error",
    "nothing": b"",
    "html": b"<h1>502</h1>",
    "fastapi_list": json.dumps({"detail": [{"loc": ["body"], "msg": "field required"}]}).encode(),
    "empty_object": b"{}",
    "a_list": b"[]",
    "message_null": b'{"error": {"message": null}}',
    "message_a_number": b'{"error": {"message": 3}}',
    "lone_surrogate": b'{"error": {"message": "\\ud800"}}',
}


@pytest.mark.parametrize("name", MUTE)
def test_error_without_message_names_status_and_length(name: str) -> None:
    reading = read(MUTE[name], 502)

    assert reading.code == "server_error"
    assert "502" in reading.message
    assert f"{len(MUTE[name])} bytes" in reading.message


def test_long_error_message_is_truncated() -> None:
    assert len(read({"error": {"message": "x" * 100_000}}, 400).message) <= 1_000


ODD_JSON = {
    "deep": b'{"choices": ' + b"[" * 511 + b"]" * 511 + b"}",
    "deep_objects": b'{"a":' * 512 + b"1" + b"}" * 512,
    "huge_number": b'{"choices": [' + b"9" * 4_300 + b"]}",
    "digits_in_a_string": b'{"choices": ["' + b"9" * 10_000 + b'"]}',
    "huge_exponent": b'{"choices": [1e999999]}',
    "lone_surrogate": b'{"choices": ["\\ud800"]}',
    "same_key_twice": b'{"choices": [1], "choices": [2]}',
    "many_digits": b'{"x": 0.1000000000000000055511151231257827, "choices": []}',
    "escapes": b'{"choices": ["\\u0041\\/\\n\\u2028"]}',
    "line_separator": '{"choices": ["\u2028\u2029\u0085"]}'.encode(),
    "ten_megabytes": b'{"choices": ["' + b"x" * 10_000_000 + b'"]}',
}


@pytest.mark.parametrize("name", ODD_JSON)
def test_unusual_json_succeeds_and_is_kept_byte_for_byte(name: str) -> None:
    reading = read(ODD_JSON[name])

    assert (reading.code, reading.body) == (None, ODD_JSON[name])


UNREADABLE = {
    "nested_1000_deep": (b'{"choices": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "nested too deeply"),
    "nested_100000_deep": (b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep_behind_a_surrogate": (b'{"a":"\\ud800","b":' + b"[" * 600 + b"]" * 600 + b"}", "nested too deeply"),
    "a_number_of_4301_digits": (b'{"choices": [' + b"9" * 4_301 + b"]}", "over 4,300 digits"),
    "one_behind_a_surrogate": (b'{"a":"\\ud800","choices": [' + b"9" * 4_301 + b"]}", "over 4,300 digits"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_json_beyond_parser_limits_is_invalid_response_kept_as_string(name: str) -> None:
    body, words = UNREADABLE[name]

    reading = read(body)

    assert (reading.code, json.loads(reading.body)) == ("invalid_response", body.decode())
    assert words in reading.message


@pytest.mark.parametrize("name", UNREADABLE)
def test_error_body_beyond_parser_limits_is_kept_as_string(name: str) -> None:
    assert json.loads(read(UNREADABLE[name][0], 500).body) == UNREADABLE[name][0].decode()


def test_usage_is_parsed_next_to_lone_surrogates() -> None:
    body = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}, "choices": ["\\ud800"]}'

    assert read(body).usage == Usage(1, 2, 3, None, 0)


def test_line_breaks_in_body_become_spaces() -> None:
    pretty = b'{\r\n  "choices": [\n    1.50,\r    "a\\nb"\n  ]\n}\n'

    assert read(pretty).body.strip() == pretty.replace(b"\r", b" ").replace(b"\n", b" ").strip()


def json_texts() -> st.SearchStrategy[str]:
    """JSON as servers write it: any value, compact or indented."""
    scalars = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    )
    names = st.sampled_from(["error", "usage", "choices", "message", "detail", "prompt_tokens"]) | st.text()
    values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20)
    return st.builds(
        lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
        values,
        st.sampled_from([None, 0, 2]),
        st.booleans(),
    ).filter(lambda text: text.isascii() or not any(0xD800 <= ord(letter) < 0xE000 for letter in text))


@given(body=st.binary(), status=st.integers(100, 999))
@example(body=b"\xff\xfe", status=200)
@example(body=b'"\\ud800"', status=400)
@example(body=b'{"error": "\\ud800\\udc00\\ud800"}', status=200)
@example(body=b"[" * 10_000, status=200)
@example(body=b'{"usage":' * 10_000, status=500)
@example(body=b'{"error":' + b"[" * 10_000 + b"]" * 10_000 + b"}", status=200)
@example(body=b'{"usage": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", status=200)
@example(body=b"-", status=200)
def test_any_bytes_become_one_line_of_json(body: bytes, status: int) -> None:
    reading = read(body, status)

    assert b"\n" not in reading.body
    assert b"\r" not in reading.body
    reading.body.decode()
    json.loads(reading.body)


@given(text=json_texts(), status=st.sampled_from([200, 400, 429, 500]))
def test_any_json_keeps_its_value(text: str, status: int) -> None:
    reading = read(text, status)

    assert b"\n" not in reading.body
    assert json.loads(reading.body) == json.loads(text)


@given(text=json_texts(), cut=st.floats(0, 1, exclude_max=True))
def test_truncated_json_succeeds_only_if_still_valid(text: str, cut: float) -> None:
    part = text.encode()[: math.floor(len(text.encode()) * cut)]
    try:
        value = json.loads(part)
    except ValueError:
        assert read(part).code == "invalid_response"
    else:
        assert json.loads(read(part).body) == value

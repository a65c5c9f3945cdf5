"""Result lines: whatever a body holds, a line is one line of JSON that says the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.error_codes import ErrorCode
from batchline.models.lines import (
    encode_json,
    encode_result_line,
    parse_result_line,
    to_json_string,
    to_single_line,
)

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
LAYOUT = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False, "indent": "\t"}])


def line(**fields) -> bytes:
    answered = {"status_code": 200, "upstream_request_id": "up-1", "body": b"{}"}
    return encode_result_line(**({"request_id": "req-1-1", "custom_id": b'"a"'} | answered | fields))


@given(body=JSON, layout=LAYOUT, custom_id=TEXT, line_break=st.sampled_from(["\n", "\r\n", "\r"]))
def test_result_line_holds_any_body_in_any_layout(body, layout, custom_id, line_break):
    sent = json.dumps(body, **layout).replace("\n", line_break).encode()
    written = line(custom_id=encode_json(custom_id), body=to_single_line(sent))
    assert written.endswith(b"\n")
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written) == {
        "id": "req-1-1",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "up-1", "body": body},
        "error": None,
    }


@given(body=JSON, layout=LAYOUT, custom_id=TEXT, upstream_request_id=TEXT, message=st.none() | TEXT.filter(bool))
def test_split_result_separates_body_and_error(body, layout, custom_id, upstream_request_id, message):
    text = to_single_line(json.dumps({"error": None, "body": body, "response": 1}, **layout).encode())
    code = None if message is None else "server_error"
    fields = {
        "custom_id": encode_json(custom_id),
        "upstream_request_id": upstream_request_id,
        "error_code": code,
        "message": message,
    }

    answered = parse_result_line(line(body=text, **fields))
    unanswered = parse_result_line(line(status_code=None, **fields))

    assert json.loads(answered.body) == json.loads(text)
    assert (answered.code, answered.message) == (unanswered.code, unanswered.message) == (code, message)
    assert unanswered.body is None


@given(st.binary())
def test_non_json_body_becomes_json_string(body):
    written = line(status_code=502, body=to_json_string(body), error_code="server_error", message="HTTP 502")
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written)["response"]["body"] == body.decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    "body",
    [
        b'{"b":1,"a":2,"b":3}',
        b"1.00e400",
        b"123456789012345678901234567890",
        rb'"\ud800"',
        b"[" * 5_000 + b"]" * 5_000,
    ],
    ids=["double key", "huge number", "long integer", "lone surrogate", "deep nesting"],
)
def test_single_line_body_is_embedded_unchanged(body):
    assert b'"body":' + body + b"}" in line(body=to_single_line(body))


def test_only_line_separator_characters_are_escaped():
    separators = [chr(each) for each in range(0x20, 0x110000) if len(f"a{chr(each)}a".splitlines()) > 1]
    assert "".join(separators) == "\x85\u2028\u2029"

    written = line(body=to_single_line('"\x85ä\u2027\u2028“\u2029\u202a中"'.encode()))

    assert '"\\u0085ä\u2027\\u2028“\\u2029\u202a中"'.encode() in written


def test_line_breaks_between_json_tokens_become_spaces():
    assert to_single_line(b'{\r\n"a": "\\n"\n}') == b'{  "a": "\\n" }'


def test_response_without_id_uses_request_id():
    assert json.loads(line(upstream_request_id=None))["response"]["request_id"] == "req-1-1"


def test_response_without_body_has_empty_body():
    assert json.loads(line(body=None))["response"]["body"] == ""


@given(upstream_request_id=TEXT.filter(bool), message=TEXT.filter(bool))
def test_upstream_texts_are_json_escaped(upstream_request_id, message):
    text = line(
        status_code=500, upstream_request_id=upstream_request_id, error_code="server_error", message=message
    )
    written = json.loads(text)
    assert len(text.decode().splitlines()) == 1
    assert (written["response"]["request_id"], written["error"]["message"]) == (upstream_request_id, message)


@pytest.mark.parametrize("code", ErrorCode)
def test_unanswered_request_has_null_response_and_error(code):
    written = json.loads(line(status_code=None, error_code=code, message="too late"))
    assert (written["response"], written["error"]) == (None, {"code": code, "message": "too late"})


def test_error_without_message_uses_its_code():
    assert json.loads(line(error_code="timeout"))["error"] == {"code": "timeout", "message": "timeout"}

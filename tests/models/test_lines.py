"""Input lines split into what the sender needs, with every byte kept."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.models.json_scan import NotJSONError
from batchline.models.lines import parse_request_line, to_json_string, to_single_line

TAIL = b'"method":"POST","url":"/v1/chat/completions"'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SPACES = st.sampled_from([b"", b" ", b"\t", b" \r "])
BODIES = {
    "keys out of order": b'{"z":1,"a":2,"model":"m"}',
    "a duplicate key": b'{"model":"m","x":1,"x":2}',
    "a number beyond a double": b'{"model":"m","x":1e400}',
    "trailing zeros": b'{"model":"m","x":1.50,"y":-0,"z":1E+2}',
    "a 400-digit integer": b'{"model":"m","x":' + b"7" * 400 + b"}",
    "510 deep": b'{"model":"m","x":' + b"[" * 510 + b"]" * 510 + b"}",
    "lone surrogates": b'{"model":"m","\\udc00":["\\ud83d\\ude00","\\ud83d","\\\\ud83d"]}',
    "escapes": b'{"model":"m","x":"\\u0061\\/\\ud800\\n"}',
    "text beyond the BMP": '{"model":"m","x":"\U0001f600"}'.encode(),
    "spaces": b'{ "model" :\t"m" , "x" : [ ] }',
    "names that a line has too": b'{"custom_id":"x","body":{"body":1},"model":"m"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_split_line_keeps_body_bytes(body: bytes) -> None:
    request = parse_request_line(b'{"custom_id": "a\\u0062" ,"body":' + body + b"," + TAIL + b"}\r")

    assert (bytes(request.custom_id), bytes(request.body)) == (b'"a\\u0062"', body)


@given(VALUES, st.text(), st.booleans(), st.permutations(range(4)), SPACES)
@settings(max_examples=300, deadline=None)
def test_split_line_keeps_body_bytes_for_any_body_and_position(
    value: object, custom_id: str, escaped: bool, order: list[int], space: bytes
) -> None:
    body = json.dumps({"model": "m", "x": value}, ensure_ascii=escaped).encode()
    name = json.dumps(custom_id, ensure_ascii=escaped).encode()
    members = [b'"custom_id":' + space + name, b'"body":' + space + body, TAIL, b'"extra":{"body":[]}']

    request = parse_request_line(b"{" + space + (space + b",").join(members[at] for at in order) + space + b"}")

    assert (bytes(request.custom_id), bytes(request.body)) == (name, body)


def test_split_line_uses_last_duplicate_member() -> None:
    request = parse_request_line(b'{"custom_id":"a","custom_id":"b","body":1,"b\\u006fdy":{"model":"m"}}')

    assert (bytes(request.custom_id), bytes(request.body)) == (b'"b"', b'{"model":"m"}')


@pytest.mark.parametrize(
    ("line", "error"),
    [(b"", NotJSONError), (b"{", NotJSONError), (b"[]", KeyError), (b'{"custom_id":"a"}', KeyError)],
    ids=repr,
)
def test_split_line_of_invalid_request_raises(line: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_request_line(line)


@given(VALUES, st.sampled_from([None, 1, "\t"]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_embeddable_json_is_one_line_with_equal_value(
    value: object, indent: int | str | None, newline: str
) -> None:
    text = json.dumps(value, indent=indent).replace("\n", newline).encode()

    line = to_single_line(text)

    assert (len(line.splitlines()), json.loads(line)) == (1, value)


@given(st.binary())
def test_as_json_text_encodes_any_bytes_on_one_line(body: bytes) -> None:
    text = to_json_string(body)

    assert json.loads(text) == body.decode("utf-8", errors="replace")
    assert b"\n" not in text

"""The checker without recursion agrees with Python's own parser wherever that one can follow."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.models.json_scan import NotJSONError, check, is_json, members


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parsed(text: bytes) -> Any:
    """What Python's parser makes of the text, without its extensions; raises `ValueError`."""
    return json.loads(text.decode(), parse_constant=refuse, parse_int=str, parse_float=str)


def is_strict_json(text: bytes) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(),
    VALUES,
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
FRAGMENTS = [
    *b'[]{}:,"\\-+.eE019u \t\r\n\0\x0b\x1f\x7f/atrfn',
    b"true",
    b"false",
    b"null",
    b"NaN",
    b"Infinity",
    b"\\u00e9",
    b"\\ud800",
    b'"a"',
    b"1e400",
    b"\xc3\xa9",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
]
PARTS = st.sampled_from([bytes([part]) if isinstance(part, int) else part for part in FRAGMENTS])
NEAR_JSON = st.lists(PARTS, max_size=12).map(b"".join)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | NEAR_JSON)
@example(b"")
@example(b" ")
@example(b"[1 2]")
@example(b"[]]")
@example(b'{"a":1 "b":2}')
@example(b"1\xc2\xa0")
@settings(max_examples=1_000, deadline=None)
def test_any_text_is_judged_as_a_strict_parser_judges_it(text: bytes) -> None:
    assert is_json(text) == is_strict_json(text)


@given(TEXTS)
@settings(deadline=None)
def test_what_a_writer_of_json_writes_is_json(text: bytes) -> None:
    check(text)


@given(TEXTS, st.data())
@settings(max_examples=400, deadline=None)
def test_json_with_a_few_bytes_exchanged_is_judged_as_a_strict_parser_judges_it(
    text: bytes, data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 2))
        text = text[:at] + data.draw(PARTS | st.just(b"")) + text[at + gone :]

    assert is_json(text) == is_strict_json(text)


PAIRS = st.lists(
    st.tuples(st.text(max_size=3) | st.sampled_from(["a", "custom_id"]), st.booleans(), TEXTS), max_size=6
)


@given(PAIRS, st.sampled_from([b"", b" ", b"\t \r\n"]))
@settings(max_examples=150, deadline=None)
def test_the_members_of_an_object_are_its_texts_and_the_last_of_equal_keys_counts(
    pairs: list[tuple[str, bool, bytes]], space: bytes
) -> None:
    written = [(key, json.dumps(key, ensure_ascii=escaped).encode(), value) for key, escaped, value in pairs]
    inside = (space + b"," + space).join(name + space + b":" + space + value for _, name, value in written)

    found = members(space + b"{" + space + inside + space + b"}" + space)

    assert found == {key: value for key, _, value in written}


@given(TEXTS)
@settings(deadline=None)
def test_members_of_anything_else_are_none(text: bytes) -> None:
    value = parsed(text)

    assert members(text).keys() == (value.keys() if isinstance(value, dict) else set())


OFFSETS = {
    "nothing": (b"", 0),
    "spaces": (b"  ", 2),
    "a word": (b" nope", 1),
    "cut short": (b'{"a":', 5),
    "an open string": (b'["abc', 1),
    "a second value": (b"{} {}", 3),
    "a comma before the end": (b"[1,]", 3),
    "the wrong bracket": (b'{"a":[1}', 7),
    "a key without quotes": (b"{a:1}", 1),
    "invalid UTF-8": (b'["\xff"]', 2),
}


@pytest.mark.parametrize(("text", "offset"), OFFSETS.values(), ids=OFFSETS)
def test_what_is_not_json_says_at_which_byte_that_shows(text: bytes, offset: int) -> None:
    with pytest.raises(NotJSONError) as caught:
        check(text)

    assert caught.value.offset == offset


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
def test_depth_is_no_hindrance(start: bytes, end: bytes) -> None:
    depth = 50_000

    assert is_json(start * depth + b"1" + end * depth)


def test_depth_without_its_end_is_not_json() -> None:
    assert not is_json(b"[" * 50_000 + b"]" * 49_999)


@pytest.mark.parametrize("text", [b"9" * 10_000, b"-1e99999", b'"' + b"x" * 2_000_000 + b'"'], ids=len)
def test_size_is_no_hindrance(text: bytes) -> None:
    assert members(b'{"a":' + text + b"}") == {"a": text}

"""The checker agrees with Python's own parser, keeps every byte of what it takes apart, and knows its bounds."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.models import json_scan
from batchline.models.json_scan import (
    MAX_DEPTH,
    MAX_DIGITS,
    NotJSONError,
    TooDeepError,
    has_long_number,
    is_json,
    is_too_deep,
    read_members,
    require_json,
)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parsed(text: bytes) -> Any:
    """Parse the text with Python's parser without its extensions; raise `ValueError`."""
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
def test_json_check_of_any_bytes_agrees_with_strict_parser(text: bytes) -> None:
    assert is_json(text) == is_strict_json(text)


@given(TEXTS)
@settings(deadline=None)
def test_json_check_accepts_serialized_values(text: bytes) -> None:
    require_json(text)


@given(TEXTS, st.data())
@settings(max_examples=400, deadline=None)
def test_json_check_of_mutated_json_agrees_with_strict_parser(text: bytes, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 2))
        text = text[:at] + data.draw(PARTS | st.just(b"")) + text[at + gone :]

    assert is_json(text) == is_strict_json(text)


NAMES = ("a", "custom_id", "body")
ODD_TEXTS = TEXTS | st.sampled_from([rb'"\ud800"', rb'"\udc00\ud800\udc00\\\ud83d"', rb'{"\uDfff":[1]}', b"[[]]"])
PAIRS = st.lists(st.tuples(st.text(max_size=3) | st.sampled_from(NAMES), st.booleans(), ODD_TEXTS), max_size=6)


@given(PAIRS, st.sampled_from([b"", b" ", b"\t \r\n"]))
@settings(max_examples=300, deadline=None)
def test_object_members_keep_bytes_and_last_duplicate_key_wins(
    pairs: list[tuple[str, bool, bytes]], space: bytes
) -> None:
    written = [(key, json.dumps(key, ensure_ascii=escaped).encode(), value) for key, escaped, value in pairs]
    inside = (space + b"," + space).join(name + space + b":" + space + value for _, name, value in written)

    found = read_members(space + b"{" + space + inside + space + b"}" + space, *NAMES)

    assert found == {key: value for key, _, value in written if key in NAMES}


@given(TEXTS)
@settings(deadline=None)
def test_members_of_non_object_are_empty(text: bytes) -> None:
    value = parsed(text)

    assert set(read_members(text, "a")) == (value.keys() & {"a"} if isinstance(value, dict) else set())


OFFSETS = {
    "nothing": (b"", 0),
    "spaces": (b"  ", 2),
    "a word": (b"[nope]", 2),
    "cut short": (b'{"a":', 5),
    "an open string": (b'["abc', 5),
    "a second value": (b"{} {}", 3),
    "a comma before the end": (b"[1,]", 3),
    "the wrong bracket": (b'{"a":[1}', 7),
    "a key without quotes": (b"{a:1}", 1),
    "invalid UTF-8": (b'["\xff"]', 2),
    "behind a lone surrogate": (rb'["\ud800" 1]', 10),
}


@pytest.mark.parametrize(("text", "offset"), OFFSETS.values(), ids=OFFSETS)
def test_invalid_json_error_has_byte_offset(text: bytes, offset: int) -> None:
    with pytest.raises(NotJSONError) as caught:
        require_json(text)

    assert caught.value.offset == offset


PADDING = b" " * 2 * MAX_DEPTH
NESTS = {"arrays": (b"[", b"]"), "objects": (b'{"a":', b"}"), "with strings": (b'["]}\\"[[",', b',"]]"]')}


@pytest.mark.parametrize(("start", "end"), NESTS.values(), ids=NESTS)
def test_json_deeper_than_limit_is_rejected(start: bytes, end: bytes) -> None:
    fits, deep = (PADDING + start * depth + b"1" + end * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))

    assert (is_json(fits), is_too_deep(deep)) == (True, True)
    with pytest.raises(TooDeepError):
        require_json(deep)


def test_brackets_side_by_side_or_in_strings_do_not_count_as_depth() -> None:
    assert not is_too_deep(b"[" + b"[[]]," * 300_000 + b'"' + b"[{" * 300_000 + b'"]')


def test_long_number_is_distinguished_from_digits_in_string() -> None:
    fits, long = b"7" * MAX_DIGITS, b"7" * (MAX_DIGITS + 1)

    assert not has_long_number(b'["\\"",1.5e' + fits + b"]")
    assert not has_long_number(rb'["\"' + long * 9 + rb'\\","' + long + b'"]')
    assert has_long_number(rb'["\"' + long * 9 + rb'\\",' + long + b"]")


@pytest.mark.parametrize("text", [b"9" * 10_000, b"-1e99999", b'"' + b"x" * 2_000_000 + b'"'], ids=len)
def test_members_of_huge_values_are_found(text: bytes) -> None:
    assert read_members(b'{"a":' + text + b"}", "a") == {"a": text}


SURROGATES = st.lists(
    st.sampled_from([rb"\ud800", rb"\uDBff", rb"\udc00", rb"\uDFFF", rb"\\", b"x", rb"\n"]), max_size=12
)


@given(SURROGATES)
@settings(max_examples=300, deadline=None)
def test_lone_surrogates_are_accepted_and_kept(parts: list[bytes]) -> None:
    text = b'"' + b"".join(parts) + b'"'

    assert read_members(b'{"b":"\\ud800","a":' + text + b"}", "a") == {"a": text}


def test_long_surrogate_sequence_is_not_split_within_a_pair() -> None:
    pairs = rb"\ud83d\ude00" * 60_000

    assert read_members(b'{"a":"' + pairs + rb'\ud800"}', "a") == {"a": b'"' + pairs + rb'\ud800"'}
    assert json_scan._replace_lone_surrogates(b"x" + pairs + rb"\ud800") == b"x" + pairs + rb"\ufffd"


TWICE = {
    "once": (b'{"a":1,"b":{"a":2}}', False),
    "never": (b'{"b":[{"a":2,"a":3}]}', False),
    "twice": (b'{"a":1,"b":2,"a":3}', True),
    "twice, escaped": (rb'{"\u0061":"\"a\":","b":2,"a" : [1]}', True),
    "once, in a string": (rb'{"b":"\"a\":1,\"a\":2","a":"x"}', False),
    "twice, beside a surrogate": (rb'{"a":"\ud800","a":"\ud800"}', True),
}


@pytest.mark.parametrize(("text", "expected"), TWICE.values(), ids=TWICE)
def test_duplicate_member_is_detected(text: bytes, expected: bool) -> None:
    assert json_scan.has_duplicate_member(text, "a") is expected

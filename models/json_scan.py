"""Validates JSON texts and extracts members of objects, in C and in linear time.

msgspec skips members of other names without creating objects. It rejects two kinds of valid JSON: escaped lone
surrogates, which are replaced before decoding, and deep nesting, which is rejected here too.
Grammar: RFC 8259. Numbers of any size, duplicate keys and escaped lone surrogates are accepted.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

import msgspec
from msgspec import Raw

MAX_DEPTH: Final = 512
"""Maximum nesting of objects and arrays. Python's own parser fails at about a thousand."""

MAX_DIGITS: Final = 4_300
"""Maximum consecutive digits of a number: Python's limit for integers (`sys.int_info.default_max_str_digits`)."""

_BLOCK_BYTES: Final = 2**18
_QUOTE: Final = ord('"')
_NON_STRUCTURAL_BYTES: Final = bytes(set(range(256)) - set(b'"[]{}'))
_ESCAPED_CHARACTER: Final = re.compile(rb'\\["\\]')
_DIGITS: Final = b"0123456789"
_HIGH_SURROGATE: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW_SURROGATE: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
    % (_LOW_SURROGATE, _HIGH_SURROGATE)
)
"""Starts with the prefix that all matches share, so that the regex engine skips other text quickly."""

_SPLIT_POINT: Final = re.compile(rb"\\(?<!%b\\)|\\(?!u[dD][c-fC-F])" % _HIGH_SURROGATE)
"""An escape that is not the second half of a pair."""

_REPLACEMENT: Final = rb"\\ufffd"
"""A template for `re.sub`, in which a backslash is written twice."""

_OFFSET_PATTERN: Final = re.compile(r"(trailing characters)?.*\(byte (\d+)\)")


class NotJSONError(ValueError):
    """The text is not JSON; `offset` is the position of the error in bytes."""

    def __init__(self, offset: int, message: str | None = None) -> None:
        super().__init__(message or f"not JSON at byte {offset}")
        self.offset = offset


class TooDeepError(NotJSONError):
    """The text has more than `MAX_DEPTH` levels."""

    def __init__(self) -> None:
        super().__init__(0, f"nested deeper than {MAX_DEPTH} levels")


def require_json(text: bytes) -> None:
    """Raise `NotJSONError` unless the text is one JSON value in UTF-8 of at most `MAX_DEPTH` levels."""
    _check_utf8_and_depth(text)
    _decode_text(text, _decode_value)


def is_json(text: bytes) -> bool:
    """Return True if the text passes `require_json`."""
    try:
        require_json(text)
    except NotJSONError:
        return False
    return True


def read_members(text: bytes, *names: str) -> dict[str, bytes]:
    """Return the JSON texts of the members that the object has, the last of equal keys; {} for any other value.

    Raises `NotJSONError` as `require_json` does.
    """
    _check_utf8_and_depth(text)
    if not text.lstrip(b" \t\r\n").startswith(b"{"):
        _decode_text(text, _decode_value)
        return {}
    decoded, scanned = _decode_text(text, _members_decoder(names))
    values = {name: value for name in names if (value := getattr(decoded, name))}
    if scanned is text:
        return {name: bytes(value) for name, value in values.items()}
    # The text was repaired: cut the same ranges, whose lengths did not change, from the original.
    base_address = _buffer_address(scanned)
    starts = {name: _buffer_address(value) - base_address for name, value in values.items()}
    return {name: text[start : start + len(memoryview(values[name]))] for name, start in starts.items()}


def has_duplicate_member(text: bytes, name: str) -> bool:
    """Return True if the text is an object with more than one member `name`; raises `NotJSONError` if not JSON."""
    decoded, scanned = _decode_text(text, _members_decoder((name,)))
    if not (value := getattr(decoded, name)):
        return False
    # The decoder kept the last one. Rename that one and decode again, which finds an earlier one if there is any.
    name_end = scanned.rfind(b'"', 0, _buffer_address(value) - _buffer_address(scanned))
    name_start = scanned.rfind(b'"', 0, name_end) + 1
    without_last, _ = _decode_text(
        scanned[:name_start] + b"?" * (name_end - name_start) + scanned[name_end:], _members_decoder((name,))
    )
    return bool(getattr(without_last, name))


def is_too_deep(text: bytes) -> bool:
    """Return True if the text has more than `MAX_DEPTH` levels."""
    if len(text) <= 2 * MAX_DEPTH:
        return False
    # Faster than counting when there are few brackets of either kind, as in nearly all texts.
    bracket_limit = MAX_DEPTH // 2
    has_many = b"[" in text.replace(b"[", b" ", bracket_limit) or b"{" in text.replace(b"{", b" ", bracket_limit)
    return has_many and _nesting_depth(text) > MAX_DEPTH


def has_long_number(text: bytes) -> bool:
    """Return True if the text, which is JSON, has a number of more than `MAX_DIGITS` consecutive digits."""
    # Called for every response, nearly all of which are shorter.
    if len(text) <= MAX_DIGITS:
        return False
    # A run of more than MAX_DIGITS digits covers two neighbouring samples and everything between them.
    sample_step = MAX_DIGITS // 2
    scanned_to, in_string = 0, False
    for sample_index, (sample, next_sample) in enumerate(pairwise(text[::sample_step])):
        sample_start = sample_index * sample_step
        if (
            sample not in _DIGITS
            or next_sample not in _DIGITS
            or not text[sample_start : sample_start + sample_step].isdigit()
        ):
            continue
        preceding = text[max(0, sample_start - sample_step) : sample_start]
        digits_start = sample_start - len(preceding) + len(preceding.rstrip(_DIGITS))
        digits = text[digits_start : digits_start + MAX_DIGITS + 1]
        if digits_start >= scanned_to and len(digits) > MAX_DIGITS and digits.isdigit():
            # An odd number of quotes since the last check changes between inside and outside a string.
            in_string ^= _remove_escapes(text[scanned_to:digits_start]).count(b'"') % 2 == 1
            scanned_to = digits_start
            if not in_string:
                return True
    return False


def _nesting_depth(text: bytes) -> int:
    """Return the maximum nesting depth."""
    import numpy as np  # noqa: PLC0415 - importing takes 0.1 s; few texts have so many brackets

    # A pair of adjacent quotes is an empty string or the seam of two strings: it changes no depth.
    structure = _remove_escapes(text).translate(None, _NON_STRUCTURAL_BYTES).replace(b'""', b"")
    max_depth = depth = starts_in_string = 0
    for offset in range(0, len(structure), _BLOCK_BYTES):
        block = np.frombuffer(structure, np.uint8, min(_BLOCK_BYTES, len(structure) - offset), offset)
        quotes = block == _QUOTE
        in_string = np.bitwise_xor.accumulate(quotes) ^ bool(starts_in_string)
        depth_changes = (block & 2).astype(np.int8) - 1  # bit 1 is set in [ and {, not in ] and }
        depth_changes[quotes | in_string] = 0
        depths = np.cumsum(depth_changes, dtype=np.int32)
        max_depth, depth, starts_in_string = (
            max(max_depth, depth + int(depths.max())),
            depth + int(depths[-1]),
            int(in_string[-1]),
        )
    return max_depth


def _remove_escapes(text: bytes) -> bytes:
    """Return the text without escaped quotes, so that each quote starts or ends a string."""
    if b"\\" not in text:
        return text
    if len(text) <= _BLOCK_BYTES:
        return _ESCAPED_CHARACTER.sub(b"", text)
    return text.replace(b"\\\\", b"").replace(b'\\"', b"")  # two passes, but not slower for many escapes


def _check_utf8_and_depth(text: bytes) -> None:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise NotJSONError(error.start) from error
    if is_too_deep(text):
        raise TooDeepError


_decode_value = msgspec.json.Decoder(Raw).decode


@cache
def _members_decoder(names: tuple[str, ...]) -> Any:
    """Return a decoder of an object to the raw texts of the named members, which skips all others."""
    members_type = msgspec.defstruct(
        "Members", [(name, Raw, msgspec.field(default=Raw())) for name in names], gc=False
    )
    return msgspec.json.Decoder(members_type).decode


def _decode_text(text: bytes, decode: Any) -> tuple[Any, bytes]:
    """Return the decoded value and the text it came from, which is as long as `text`; raises `NotJSONError`."""
    try:
        return decode(text), text
    except RecursionError:  # happens below MAX_DEPTH if the caller's stack is deep
        raise TooDeepError from None
    except msgspec.DecodeError as error:
        repaired = _replace_lone_surrogates(text)
        if repaired is text:
            raise NotJSONError(_error_offset(error, text)) from None
    try:
        return decode(repaired), repaired
    except msgspec.DecodeError as error:
        raise NotJSONError(_error_offset(error, text)) from None


def _replace_lone_surrogates(text: bytes) -> bytes:
    """Return the text with each lone surrogate replaced by an escape of equal length; `text` itself if none."""
    if b"\\ud" not in text and b"\\uD" not in text:
        return text
    # Mask escaped backslashes first: a `u` after one starts no escape.
    masked = text.replace(b"\\\\", b"..") if b"\\\\" in text else text
    repaired = b"".join(_LONE_SURROGATE.sub(_REPLACEMENT, block) for block in _split_blocks(masked))
    return text if repaired == masked else repaired


def _split_blocks(text: bytes) -> Iterator[bytes]:
    """Yield the text in blocks that split no surrogate pair; a regex search holds the GIL until it ends."""
    start = 0
    while start < len(text):
        split = _SPLIT_POINT.search(text, start + _BLOCK_BYTES) if len(text) - start > _BLOCK_BYTES else None
        end = split.start() if split else len(text)
        yield text[start:end]
        start = end


def _buffer_address(text: bytes | Raw) -> int:
    """Return the memory address of the bytes; the difference of two is the offset of a value in its text."""
    import numpy as np  # noqa: PLC0415 - only for texts with lone surrogates

    return int(np.frombuffer(text, np.uint8).__array_interface__["data"][0])


def _error_offset(error: msgspec.DecodeError, text: bytes) -> int:
    """Return the byte offset in the decoder's message, or the text's length if the text is truncated."""
    match = _OFFSET_PATTERN.search(str(error).removeprefix("JSON is malformed: "))
    # For trailing characters, the message names the byte after the first of them.
    return int(match[2]) - bool(match[1]) if match else len(text)

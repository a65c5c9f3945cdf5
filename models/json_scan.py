"""Checks JSON texts of any kind and takes objects apart, in C and in time that grows with the text's length alone.

msgspec skips what is not asked for without making objects of it. It refuses two things that are JSON: escaped lone
surrogates, which are replaced before it reads the text, and deep nesting, which is out of bounds here too.
Grammar: RFC 8259. Any size of number, duplicate keys and escaped lone surrogates are fine.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

import msgspec
from msgspec import Raw

MAX_DEPTH: Final = 512
"""Levels of objects and arrays in a text. Python's own parser gives up at about a thousand."""

MAX_DIGITS: Final = 4_300
"""Digits in a row of a number. Python makes no integer of a longer one (`sys.int_info.default_max_str_digits`)."""

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
"""Begins with what all matches begin with: the search then skips everything else quickly."""

_SPLIT_POINT: Final = re.compile(rb"\\(?<!%b\\)|\\(?!u[dD][c-fC-F])" % _HIGH_SURROGATE)
"""An escape that is not the second half of a pair."""

_REPLACEMENT: Final = rb"\\ufffd"
"""Of a replacement, in which a backslash is written twice."""

_OFFSET_PATTERN: Final = re.compile(r"(trailing characters)?.*\(byte (\d+)\)")


class NotJSONError(ValueError):
    """The text is not JSON; `offset` is the byte at which that shows."""

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
    """True if `check` finds nothing wrong with the text."""
    try:
        require_json(text)
    except NotJSONError:
        return False
    return True


def read_members(text: bytes, *names: str) -> dict[str, bytes]:
    """Return the texts of those members that the object has, the last of equal keys; none for another value.

    Raises as `check` does.
    """
    _check_utf8_and_depth(text)
    if not text.lstrip(b" \t\r\n").startswith(b"{"):
        _decode_text(text, _decode_value)
        return {}
    decoded, scanned = _decode_text(text, _members_decoder(names))
    values = {name: value for name in names if (value := getattr(decoded, name))}
    if scanned is text:
        return {name: bytes(value) for name, value in values.items()}
    base_address = _buffer_address(scanned)
    starts = {name: _buffer_address(value) - base_address for name, value in values.items()}
    return {name: text[start : start + len(memoryview(values[name]))] for name, start in starts.items()}


def has_duplicate_member(text: bytes, name: str) -> bool:
    """True if the text is an object that has that member more than once; raises `NotJSONError` if not JSON."""
    decoded, scanned = _decode_text(text, _members_decoder((name,)))
    if not (value := getattr(decoded, name)):
        return False
    # The decoder has kept the last one. Under another name, it leaves the one before, if there is any.
    name_end = scanned.rfind(b'"', 0, _buffer_address(value) - _buffer_address(scanned))
    name_start = scanned.rfind(b'"', 0, name_end) + 1
    without_last, _ = _decode_text(
        scanned[:name_start] + b"?" * (name_end - name_start) + scanned[name_end:], _members_decoder((name,))
    )
    return bool(getattr(without_last, name))


def is_too_deep(text: bytes) -> bool:
    """True if the text has more than `MAX_DEPTH` levels."""
    if len(text) <= 2 * MAX_DEPTH:
        return False
    # Quicker than counting if there are few brackets of a kind, as nearly always.
    bracket_limit = MAX_DEPTH // 2
    has_many = b"[" in text.replace(b"[", b" ", bracket_limit) or b"{" in text.replace(b"{", b" ", bracket_limit)
    return has_many and _nesting_depth(text) > MAX_DEPTH


def has_long_number(text: bytes) -> bool:
    """True if the text, which is JSON, has a number of more than `MAX_DIGITS` digits in a row."""
    if len(text) <= MAX_DIGITS:  # nearly always: this is asked of every answer
        return False
    sample_step = (
        MAX_DIGITS // 2
    )  # a longer run of digits covers two neighbours of these samples, and all between them
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
            in_string ^= _remove_escapes(text[scanned_to:digits_start]).count(b'"') % 2 == 1
            scanned_to = digits_start
            if not in_string:
                return True
    return False


def _nesting_depth(text: bytes) -> int:
    """The most levels that are open at once."""
    import numpy as np  # noqa: PLC0415 - a tenth of a second for the few texts with so many brackets

    structure = (
        _remove_escapes(text).translate(None, _NON_STRUCTURAL_BYTES).replace(b'""', b"")
    )  # an empty string, or the seam of two strings
    max_depth = depth = starts_in_string = 0
    for offset in range(0, len(structure), _BLOCK_BYTES):
        block = np.frombuffer(structure, np.uint8, min(_BLOCK_BYTES, len(structure) - offset), offset)
        quotes = block == _QUOTE
        in_string = np.bitwise_xor.accumulate(quotes) ^ bool(starts_in_string)
        depth_changes = (block & 2).astype(np.int8) - 1  # this bit tells [ and { from ] and }
        depth_changes[quotes | in_string] = 0
        depths = np.cumsum(depth_changes, dtype=np.int32)
        max_depth, depth, starts_in_string = (
            max(max_depth, depth + int(depths.max())),
            depth + int(depths[-1]),
            int(in_string[-1]),
        )
    return max_depth


def _remove_escapes(text: bytes) -> bytes:
    """The text without escaped quotes, so that each quote is one end of a string."""
    if b"\\" not in text:
        return text
    if len(text) <= _BLOCK_BYTES:
        return _ESCAPED_CHARACTER.sub(b"", text)
    return text.replace(b"\\\\", b"").replace(b'\\"', b"")  # slower, but whatever the text


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
    """Decode an object to the raw texts of those members; members of other names are skipped."""
    members_type = msgspec.defstruct(
        "Members", [(name, Raw, msgspec.field(default=Raw())) for name in names], gc=False
    )
    return msgspec.json.Decoder(members_type).decode


def _decode_text(text: bytes, decode: Any) -> tuple[Any, bytes]:
    """Return the decoded text, and the text that was read, of the same length; raises `NotJSONError`."""
    try:
        return decode(text), text
    except RecursionError:  # a deep stack leaves less room
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
    """The text with another escape, of the same length, for each lone surrogate; itself if it has none."""
    if b"\\ud" not in text and b"\\uD" not in text:
        return text
    # A pair of backslashes is a character of its own: what follows it is no escape.
    masked = text.replace(b"\\\\", b"..") if b"\\\\" in text else text
    repaired = b"".join(_LONE_SURROGATE.sub(_REPLACEMENT, block) for block in _split_blocks(masked))
    return text if repaired == masked else repaired


def _split_blocks(text: bytes) -> Iterator[bytes]:
    """The text in pieces that divide no pair of surrogates: a search holds the interpreter until it ends."""
    start = 0
    while start < len(text):
        split = _SPLIT_POINT.search(text, start + _BLOCK_BYTES) if len(text) - start > _BLOCK_BYTES else None
        end = split.start() if split else len(text)
        yield text[start:end]
        start = end


def _buffer_address(text: bytes | Raw) -> int:
    """Return the address of the bytes, from which follows where in a text the decoder has found a value."""
    import numpy as np  # noqa: PLC0415 - only for texts with lone surrogates

    return int(np.frombuffer(text, np.uint8).__array_interface__["data"][0])


def _error_offset(error: msgspec.DecodeError, text: bytes) -> int:
    """The byte that the decoder's message names; the text's end if that was cut short."""
    match = _OFFSET_PATTERN.search(str(error).removeprefix("JSON is malformed: "))
    return int(match[2]) - bool(match[1]) if match else len(text)  # of what trails it names the byte behind

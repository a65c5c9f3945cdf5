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

_PIECE: Final = 2**18
_QUOTE: Final = ord('"')
_UNSTRUCTURAL: Final = bytes(set(range(256)) - set(b'"[]{}'))
_ESCAPED: Final = re.compile(rb'\\["\\]')
_DIGITS: Final = b"0123456789"
_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})" % (_LOW, _HIGH)
)
"""Begins with what all matches begin with: the search then skips everything else quickly."""

_SEAM: Final = re.compile(rb"\\(?<!%b\\)|\\(?!u[dD][c-fC-F])" % _HIGH)
"""An escape that is not the second half of a pair."""

_REPLACED: Final = rb"\\ufffd"
"""Of a replacement, in which a backslash is written twice."""

_BYTE: Final = re.compile(r"(trailing characters)?.*\(byte (\d+)\)")


class NotJSONError(ValueError):
    """The text is not JSON; `offset` is the byte at which that shows."""

    def __init__(self, offset: int, message: str | None = None) -> None:
        super().__init__(message or f"not JSON at byte {offset}")
        self.offset = offset


class TooDeepError(NotJSONError):
    """The text has more than `MAX_DEPTH` levels."""

    def __init__(self) -> None:
        super().__init__(0, f"nested deeper than {MAX_DEPTH} levels")


def check(text: bytes) -> None:
    """Raise `NotJSONError` unless the text is one JSON value in UTF-8 of at most `MAX_DEPTH` levels."""
    _check_utf8_and_depth(text)
    _read(text, _decode_any)


def is_json(text: bytes) -> bool:
    """True if `check` finds nothing wrong with the text."""
    try:
        check(text)
    except NotJSONError:
        return False
    return True


def members(text: bytes, *names: str) -> dict[str, bytes]:
    """Return the texts of those members that the object has, the last of equal keys; none for another value.

    Raises as `check` does.
    """
    _check_utf8_and_depth(text)
    if not text.lstrip(b" \t\r\n").startswith(b"{"):
        _read(text, _decode_any)
        return {}
    found, read = _read(text, _decoder(names))
    values = {name: value for name in names if (value := getattr(found, name))}
    if read is text:
        return {name: bytes(value) for name, value in values.items()}
    first = _address(read)
    starts = {name: _address(value) - first for name, value in values.items()}
    return {name: text[start : start + len(memoryview(values[name]))] for name, start in starts.items()}


def has_twice(text: bytes, name: str) -> bool:
    """True if the text is an object that has that member more than once; raises `NotJSONError` if not JSON."""
    found, read = _read(text, _decoder((name,)))
    if not (value := getattr(found, name)):
        return False
    # The decoder has kept the last one. Under another name, it leaves the one before, if there is any.
    end = read.rfind(b'"', 0, _address(value) - _address(read))
    start = read.rfind(b'"', 0, end) + 1
    other, _ = _read(read[:start] + b"?" * (end - start) + read[end:], _decoder((name,)))
    return bool(getattr(other, name))


def is_too_deep(text: bytes) -> bool:
    """True if the text has more than `MAX_DEPTH` levels."""
    if len(text) <= 2 * MAX_DEPTH:
        return False
    # Quicker than counting if there are few brackets of a kind, as nearly always.
    half = MAX_DEPTH // 2
    has_many = b"[" in text.replace(b"[", b" ", half) or b"{" in text.replace(b"{", b" ", half)
    return has_many and _depth(text) > MAX_DEPTH


def has_long_number(text: bytes) -> bool:
    """True if the text, which is JSON, has a number of more than `MAX_DIGITS` digits in a row."""
    if len(text) <= MAX_DIGITS:  # nearly always: this is asked of every answer
        return False
    step = MAX_DIGITS // 2  # a longer run of digits covers two neighbours of these samples, and all between them
    seen, in_string = 0, False
    for number, (one, other) in enumerate(pairwise(text[::step])):
        first = number * step
        if one not in _DIGITS or other not in _DIGITS or not text[first : first + step].isdigit():
            continue
        before = text[max(0, first - step) : first]
        start = first - len(before) + len(before.rstrip(_DIGITS))
        run = text[start : start + MAX_DIGITS + 1]
        if start >= seen and len(run) > MAX_DIGITS and run.isdigit():
            in_string ^= _unescaped(text[seen:start]).count(b'"') % 2 == 1
            seen = start
            if not in_string:
                return True
    return False


def _depth(text: bytes) -> int:
    """The most levels that are open at once."""
    import numpy as np  # noqa: PLC0415 - a tenth of a second for the few texts with so many brackets

    marks = (
        _unescaped(text).translate(None, _UNSTRUCTURAL).replace(b'""', b"")
    )  # an empty string, or the seam of two strings
    most = depth = inside = 0
    for at in range(0, len(marks), _PIECE):
        piece = np.frombuffer(marks, np.uint8, min(_PIECE, len(marks) - at), at)
        quotes = piece == _QUOTE
        in_string = np.bitwise_xor.accumulate(quotes) ^ bool(inside)
        steps = (piece & 2).astype(np.int8) - 1  # this bit tells [ and { from ] and }
        steps[quotes | in_string] = 0
        depths = np.cumsum(steps, dtype=np.int32)
        most, depth, inside = max(most, depth + int(depths.max())), depth + int(depths[-1]), int(in_string[-1])
    return most


def _unescaped(text: bytes) -> bytes:
    """The text without escaped quotes, so that each quote is one end of a string."""
    if b"\\" not in text:
        return text
    if len(text) <= _PIECE:
        return _ESCAPED.sub(b"", text)
    return text.replace(b"\\\\", b"").replace(b'\\"', b"")  # slower, but whatever the text


def _check_utf8_and_depth(text: bytes) -> None:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise NotJSONError(error.start) from error
    if is_too_deep(text):
        raise TooDeepError


_decode_any = msgspec.json.Decoder(Raw).decode


@cache
def _decoder(names: tuple[str, ...]) -> Any:
    """Decode an object to the raw texts of those members; members of other names are skipped."""
    shape = msgspec.defstruct("Members", [(name, Raw, msgspec.field(default=Raw())) for name in names], gc=False)
    return msgspec.json.Decoder(shape).decode


def _read(text: bytes, decode: Any) -> tuple[Any, bytes]:
    """Return the decoded text, and the text that was read, of the same length; raises `NotJSONError`."""
    try:
        return decode(text), text
    except RecursionError:  # a deep stack leaves less room
        raise TooDeepError from None
    except msgspec.DecodeError as error:
        read = _without_lone_surrogates(text)
        if read is text:
            raise NotJSONError(_offset(error, text)) from None
    try:
        return decode(read), read
    except msgspec.DecodeError as error:
        raise NotJSONError(_offset(error, text)) from None


def _without_lone_surrogates(text: bytes) -> bytes:
    """The text with another escape, of the same length, for each lone surrogate; itself if it has none."""
    if b"\\ud" not in text and b"\\uD" not in text:
        return text
    # A pair of backslashes is a character of its own: what follows it is no escape.
    plain = text.replace(b"\\\\", b"..") if b"\\\\" in text else text
    read = b"".join(_LONE_SURROGATE.sub(_REPLACED, piece) for piece in _pieces(plain))
    return text if read == plain else read


def _pieces(text: bytes) -> Iterator[bytes]:
    """The text in pieces that divide no pair of surrogates: a search holds the interpreter until it ends."""
    at = 0
    while at < len(text):
        seam = _SEAM.search(text, at + _PIECE) if len(text) - at > _PIECE else None
        end = seam.start() if seam else len(text)
        yield text[at:end]
        at = end


def _address(text: bytes | Raw) -> int:
    """Return the address of the bytes, from which follows where in a text the decoder has found a value."""
    import numpy as np  # noqa: PLC0415 - only for texts with lone surrogates

    return int(np.frombuffer(text, np.uint8).__array_interface__["data"][0])


def _offset(error: msgspec.DecodeError, text: bytes) -> int:
    """The byte that the decoder's message names; the text's end if that was cut short."""
    found = _BYTE.search(str(error).removeprefix("JSON is malformed: "))
    return int(found[2]) - bool(found[1]) if found else len(text)  # of what trails it names the byte behind

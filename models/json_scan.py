"""A JSON checker without recursion, for the rare text that a fast parser refuses although it is JSON.

Grammar: RFC 8259. Any depth, any size of number, duplicate keys and escaped lone surrogates are fine.
"""

import json
import re
from collections.abc import Iterator

_TOKEN = re.compile(
    rb"[ \t\r\n]*(?:"
    rb'(?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")'
    rb"|(?P<plain>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)"
    rb"|(?P<mark>[\[\]{}:,])"
    rb"|(?P<end>\Z))"
)

VALUE, KEY_OR_CLOSE, KEY, COLON, VALUE_OR_CLOSE, NEXT = range(6)


class NotJSONError(ValueError):
    """The text is not JSON; `offset` is the byte at which that shows."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"not JSON at byte {offset}")
        self.offset = offset


def check(text: bytes) -> None:
    """Raise `NotJSONError` unless the text is one JSON value in UTF-8."""
    for _ in _walk(text):
        pass


def is_json(text: bytes) -> bool:
    """Whether the text is one JSON value in UTF-8."""
    try:
        check(text)
    except NotJSONError:
        return False
    return True


def members(text: bytes) -> dict[str, bytes]:
    """The texts of an object's values by key, the last of equal keys; none for another kind of value.

    Raises `NotJSONError` for what is not JSON.
    """
    found: dict[str, bytes] = {}
    key = ""
    start = -1
    is_object = False
    for depth, state, kind, first, last in _walk(text):
        if depth == 0 and text[first:last] == b"{":
            is_object = True
        elif depth == 1 and is_object and state in {KEY, KEY_OR_CLOSE} and kind == "string":
            key = json.loads(text[first:last])
        elif depth == 1 and is_object and state == VALUE:
            start = first
            if kind != "mark":
                found[key] = text[first:last]
        elif depth == 2 and is_object and kind == "mark" and text[first:last] in {b"}", b"]"}:
            found[key] = text[start:last]
    return found


def _walk(text: bytes) -> Iterator[tuple[int, int, str, int, int]]:
    """Each token with the depth and the state that it was met in: `(depth, state, kind, first, last)`."""
    _check_utf8(text)
    stack = bytearray()
    state = VALUE
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotJSONError(at + len(text[at:]) - len(text[at:].lstrip(b" \t\r\n")))
        kind = match.lastgroup or "end"
        first, last = match.span(kind)
        if kind == "end":
            if stack or state != NEXT:
                raise NotJSONError(len(text))
            return
        yield len(stack), state, kind, first, last
        state = _step(stack, state, kind, text[first:last], first)
        at = last


def _check_utf8(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NotJSONError(error.start) from error


def _step(stack: bytearray, state: int, kind: str, token: bytes, at: int) -> int:
    """The state after that token; raises `NotJSONError` where it has no place."""
    if state in {VALUE, VALUE_OR_CLOSE} and kind != "mark":
        return NEXT
    if state in {VALUE, VALUE_OR_CLOSE} and token in {b"{", b"["}:
        stack += token
        return KEY_OR_CLOSE if token == b"{" else VALUE_OR_CLOSE
    if state in {KEY, KEY_OR_CLOSE} and kind == "string":
        return COLON
    if state == COLON and token == b":":
        return VALUE
    return _close_or_comma(stack, state, token, at)


def _close_or_comma(stack: bytearray, state: int, token: bytes, at: int) -> int:
    inside = bytes(stack[-1:])
    closes = (inside, token) in {(b"{", b"}"), (b"[", b"]")}
    if closes and (
        state == NEXT or (state == KEY_OR_CLOSE and token == b"}") or (state == VALUE_OR_CLOSE and token == b"]")
    ):
        stack.pop()
        return NEXT
    if state == NEXT and token == b"," and stack:
        return KEY if inside == b"{" else VALUE
    raise NotJSONError(at)

"""Takes off what some servers send around the JSON of a reply, and splits streams of events.

A byte-order mark, blank lines and comments may precede the JSON, and `data: [DONE]` may follow it: servers that
keep a connection alive with comments (OpenRouter) do so for plain replies too. Events: WHATWG HTML, server-sent
events.
"""

import re
from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"
BLANKS: Final = b" \t\r\n"
"""JSON's whitespace; `bytes.strip` alone removes more."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_EVENT_START: Final = re.compile(rb"(?:data|event|id|retry):")
_DONE: Final = b"[DONE]"
_DONE_LINE: Final = re.compile(rb"data:[ \t]*\[DONE\]$")


class Event(NamedTuple):
    """An event of a stream; `name` is empty if it has none."""

    name: str
    data: bytes


def remove_framing(body: bytes) -> bytes:
    """Return the body without byte-order mark, comments, surrounding whitespace and a trailing `data: [DONE]`."""
    text = body.removeprefix(_BOM).strip(BLANKS)
    while text.startswith(b":"):
        line_end = _LINE_END.search(text)
        text = text[line_end.end() :].lstrip(BLANKS) if line_end else b""
    if is_event_stream(text):
        return text
    while text.endswith(_DONE) and (match := _DONE_LINE.search(text, max(0, len(text) - 64))):
        text = text[: match.start()].rstrip(BLANKS)
    return text


def is_event_stream(text: bytes) -> bool:
    """Return True if the text, without framing, begins like a stream of events."""
    return _EVENT_START.match(text) is not None


def split_events(text: bytes) -> tuple[list[Event], bool]:
    """Return the events with data, and True if `[DONE]` ended the stream; what follows it is ignored.

    An event without the blank line that should end it counts too, if the stream ends there.
    """
    events: list[Event] = []
    name, data = "", []
    for line in (*_LINE_END.split(text), b""):
        if line:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value.decode(errors="replace")
            continue
        if data:
            event_data = b"\n".join(data)
            if event_data.strip(BLANKS) == _DONE:
                return events, True
            if event_data.strip(BLANKS):
                events.append(Event(name, event_data))
        name, data = "", []
    return events, False

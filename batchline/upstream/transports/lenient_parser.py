"""Parses replies whose heads break rules of HTTP that browsers and curl do not insist on.

httptools accepts only heads that follow RFC 9112. A head that it refuses is rewritten here into one that it
accepts, so that well-formed replies cost nothing.
"""

import re
from typing import Any, Final

import httptools

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_LONGEST_END: Final = len(b"\n\r\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+([1-9]\d\d)(?![^ \t])", re.IGNORECASE)
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL_CHARACTER: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_SWITCHING_PROTOCOLS: Final = b"101"

_PLAIN_WORDS: Final = {
    "Invalid character in chunk size": "the size of a chunk is not a hexadecimal number",
    "Missing expected CR after chunk size": "a line with the size of a chunk does not end with CR LF",
    "Invalid character in chunk extensions": "there is an invalid character after the size of a chunk",
    "Expected LF after chunk data": "a chunk does not have the size that it says",
    "Chunk size overflow": "the size of a chunk is not a possible number",
}
"""The parser's messages about chunks, which say little to people who do not know its code."""


class RuleBroken(httptools.HttpParserError):
    """Raised for a head that not even browsers accept; the message names the rule of HTTP."""


def new_parser(protocol: Any) -> Any:
    """Return a parser that takes spaces after the size of a chunk, and Content-Length as a trailer."""
    parser = httptools.HttpResponseParser(protocol)
    parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_chunked_length=True)
    return parser


def describe_broken_rule(error: Exception) -> str:
    """Return the rule of HTTP that a reply breaks, in words that complete "the answer breaks a rule of HTTP: "."""
    if isinstance(error, httptools.HttpParserUpgrade):
        return "it switches to another protocol, which was not asked for"
    reason = str(error)
    return _PLAIN_WORDS.get(reason) or reason[:1].lower() + reason[1:]


class LenientParser:
    """Parses one reply, with its head rewritten; it has the methods of `HttpResponseParser` that are used."""

    def __init__(self, protocol: Any) -> None:
        self._parser = new_parser(protocol)
        self._head = bytearray()
        self._searched_bytes = 0
        self._is_in_body = False

    def feed_data(self, data: bytes) -> None:
        """Parse the data; raises `HttpParserError`. Until the head is complete it is only collected."""
        if self._is_in_body:
            self._parser.feed_data(data)
            return
        head = self._head
        head += data
        while end := _END_OF_HEAD.search(head, self._searched_bytes):
            rest = head[end.end() :]
            lines = bytes(head[: end.end()]).lstrip(b"\r\n").split(b"\n")
            if lines != [b""]:  # else they are blank lines before the head
                status = _parse_status_line(lines[0])
                if not status.startswith(b"1") or status == _SWITCHING_PROTOCOLS:
                    self._is_in_body = True
                    self._parser.feed_data(_rewrite_head(status, lines[1:]) + rest)
                    return
            head[:] = rest
            self._searched_bytes = 0
        self._searched_bytes = max(0, len(head) - _LONGEST_END)

    def get_status_code(self) -> int:
        """Return the status of the reply."""
        return int(self._parser.get_status_code())

    def should_keep_alive(self) -> bool:
        """Return False: what follows such a reply is not worth the risk of reading it wrongly."""
        return False


def _parse_status_line(line: bytes) -> bytes:
    match = _STATUS_LINE.match(line.rstrip(b"\r"))
    if match is None:
        raise RuleBroken("it does not start with HTTP/1.1 and a status")
    return match[1]


def _rewrite_head(status: bytes, lines: list[bytes]) -> bytes:
    """Return the head in the form of RFC 9112: one line per header, and the body's length once."""
    codings: list[bytes] = []
    lengths: set[bytes] = set()
    rewritten = [b"HTTP/1.1 %b " % status]
    for name, value in _parse_headers(lines):
        lower_name = name.lower()
        if lower_name == b"transfer-encoding":
            codings += [coding.strip() for coding in value.split(b",")]
        elif lower_name == b"content-length":
            lengths |= {length.strip() for length in value.split(b",")}
        else:
            rewritten.append(b"%b: %b" % (name, value))
    codings = [coding for coding in codings if coding.lower() not in {b"", b"identity"}]
    if codings:  # they take precedence over Content-Length (RFC 9112, 6.3)
        rewritten.append(b"transfer-encoding: %b" % b", ".join(codings))
    elif len(lengths) > 1:
        raise RuleBroken("it has several values of Content-Length that differ")
    elif lengths:
        length = lengths.pop()
        if not length.isdigit():
            raise RuleBroken("its Content-Length is not a number")
        rewritten.append(b"content-length: %b" % length)
    return b"\r\n".join(rewritten) + b"\r\n\r\n"


def _parse_headers(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the names and values of the headers, without lines that are none."""
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        if line[:1] in {b" ", b"\t"}:
            if headers:  # a folded line continues the header before it (RFC 9112, 5.2)
                name, value = headers[-1]
                headers[-1] = name, (value + b" " + line.strip()).strip()
            continue
        name, _, value = line.partition(b":")
        headers.append((name.strip(), _CONTROL_CHARACTER.sub(b" ", value).strip()))
    return [(name, value) for name, value in headers if _NAME.fullmatch(name)]

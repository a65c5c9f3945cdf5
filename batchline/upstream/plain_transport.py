"""The transport for `http://` upstreams: HTTP/1.1 on the loop itself, parsed by httptools.

A library with a thread of its own has to hand every reply over under the interpreter's lock, which at full speed
costs more than the exchange. Here a request is one write and one read on the thread that decides what comes next.
Framing follows RFC 9112. Whatever is out of the ordinary in a reply ends its connection.
"""

import asyncio
import time
import zlib
from contextlib import suppress
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

from batchline.models.failures import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream.keepalive import KEEPALIVE_OPTIONS
from batchline.upstream.transport import Reply, TooLate, TransportFailure, headers_for, too_long

IDLE_S: Final = 60.0
"""After which an unused connection is closed; servers close theirs after 5 s and more."""

MOST_HEAD_BYTES: Final = 2**20
INFLATED: Final = {b"gzip": 31, b"deflate": 15}
"""Encodings that are undone though they were not asked for, with zlib's window bits for them."""


class PlainTransport:
    """Sends over keep-alive connections, as many as are under way; follows no redirect."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        parts = urlsplit(upstream.base_url)
        self._authority = parts.netloc
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._loop = asyncio.get_running_loop()
        self._heads: dict[str, bytes] = {}
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._watch_every_s = max(0.005, min(upstream.longest_silence_s, upstream.total_timeout_s, 10.0) / 20)
        self._watch: asyncio.TimerHandle | None = None

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> Reply:
        """POST that JSON body; the timeouts are the upstream's."""
        head = self._heads.get(path) or self._head(path)
        began = time.monotonic()
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = await self._connected()
            if time.monotonic() > valid_until:
                connection.abort()
                raise TooLate
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        try:
            reply = await connection.exchange(request, began)
        except BaseException:
            connection.abort()
            raise
        if connection.can_serve_again():
            self._idle.append(connection)
        return reply

    def _head(self, path: str) -> bytes:
        """The request's head up to the value of its last header, the length of the body."""
        target = urlsplit(self._upstream.url_for(path)).path
        # Without this header a server may choose any encoding. Compression costs both sides more than the few
        # kilobytes that it would save on a local network; other upstreams are called by the TLS transport.
        headers = {"host": self._authority, "accept-encoding": "identity", **headers_for(self._upstream, path)}
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = self._heads[path] = ("\r\n".join(lines) + "\r\ncontent-length: ").encode()
        return head

    async def _connected(self) -> "_Connection":
        """A new connection."""
        try:
            async with asyncio.timeout(self._upstream.connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self._upstream, self._gone), self._host, self._port
                )
        except TimeoutError as error:
            raise TransportFailure(ErrorCode.TIMEOUT, "no connection: timed out", sent=False) from error
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise TransportFailure(ErrorCode.CONNECTION_ERROR, f"no connection: {why}", sent=False) from error
        self._all.add(connection)
        if self._watch is None:
            self._watch = self._loop.call_later(self._watch_every_s, self._look_after)
        return connection

    def _gone(self, connection: "_Connection") -> None:
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def _look_after(self) -> None:
        """End exchanges that take too long and connections that nobody uses: one timer for all."""
        now = time.monotonic()
        for connection in list(self._all):
            connection.look_after(now)
        self._watch = self._loop.call_later(self._watch_every_s, self._look_after) if self._all else None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._watch is not None:
            self._watch.cancel()
        for connection in list(self._all):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection: one exchange at a time."""

    def __init__(self, upstream: Upstream, gone: Any) -> None:
        self._upstream = upstream
        self._gone = gone
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None
        self._clear(time.monotonic())

    def _clear(self, began: float) -> None:
        self._began = self._heard_at = began
        self._received = self._body_bytes = 0
        self._first_byte_at = 0.0
        self._status = 0
        self._complete = self._in_body = self._may_stay = False
        self._pieces: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    # What the transport asks

    async def exchange(self, request: bytes, began: float) -> Reply:
        """Send those bytes and return the whole reply; raises `TransportFailure`."""
        transport = self._transport
        if transport is None:
            raise self._broke("it was closed by the server", sent=False)
        self._clear(began)
        self._answered = asyncio.get_running_loop().create_future()
        transport.write(request)
        await self._answered
        return self._reply()

    def _reply(self) -> Reply:
        header = self._headers.get
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._headers:
            body = self._decoded(body)
        return Reply(
            self._status,
            body,
            self._first_byte_at - self._began,
            _text(header(b"x-request-id")),
            _text(header(b"retry-after")),
            _text(header(b"retry-after-ms")),
        )

    def can_serve_again(self) -> bool:
        """Whether another exchange may follow; the connection is ended otherwise."""
        if self._may_stay and self._transport is not None and not self._transport.is_closing():
            return True
        self.abort()
        return False

    def look_after(self, now: float) -> None:
        """End what takes too long."""
        upstream, silent_s = self._upstream, now - self._heard_at
        if self._answered is None:
            if silent_s > IDLE_S:
                self.abort()
        elif silent_s > upstream.longest_silence_s or now - self._began > upstream.total_timeout_s:
            begun = self._received > 0
            self._fail(TransportFailure(ErrorCode.TIMEOUT, "no answer in time", sent=True, begun=begun))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and let the system notice a peer that has vanished."""
        self._transport = transport  # type: ignore[assignment] # a connection's is one
        found = transport.get_extra_info("socket")
        if found is not None:
            for option in KEEPALIVE_OPTIONS:
                found.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what nobody asked for ends the connection."""
        answered = self._answered
        if answered is None:
            self.abort()
            return
        self._heard_at = time.monotonic()
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail(self._broke(f"it is not HTTP ({type(error).__name__})", sent=True))
                return
            self.abort()  # the answer is whole, what follows it is not
        if not self._in_body and self._received > MOST_HEAD_BYTES:
            self._fail(self._broke("the answer's head has no end", sent=True))
        if self._complete and not answered.done():
            self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way, unless it was to end with the connection."""
        self._transport = None
        self._gone(self)
        if self._answered is None or self._answered.done():
            return
        is_framed = not _FRAMING.isdisjoint(self._headers)
        if self._in_body and exc is None and not is_framed:
            self._status = self._parser.get_status_code()
            self._complete = True
            self._settle()
        else:
            why = "the server closed it" if exc is None else str(exc) or type(exc).__name__
            within = " within the answer" if self._received else " before it answered"
            self._fail(self._broke(why + within, sent=True))

    # What the parser tells

    def on_message_begin(self) -> None:
        """End a connection on which something follows the answer that was asked for."""
        if self._complete:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that matter."""
        lower = name.lower()
        if lower in _KEPT and not self._complete:
            self._headers[lower] = value

    def on_headers_complete(self) -> None:
        """Refuse an answer that says that it is too long."""
        if self._complete or self._parser.get_status_code() < 200:
            return
        self._in_body = True
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._upstream.max_response_bytes:
            self._fail(too_long(self._upstream))

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self._pieces:
            self._first_byte_at = self._heard_at
        self._body_bytes += len(body)
        if self._body_bytes > self._upstream.max_response_bytes:
            self._fail(too_long(self._upstream))
        elif not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was one that comes before the answer (1xx)."""
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
        else:
            # A second answer in the same bytes is parsed before this one is read.
            self._status = status
            self._complete = True
            self._may_stay = self._parser.should_keep_alive()

    # How an exchange ends

    def _settle(self) -> None:
        answered, self._answered = self._answered, None
        self._first_byte_at = self._first_byte_at or self._heard_at
        if answered is not None and not answered.done():
            answered.set_result(None)

    def _fail(self, failure: TransportFailure) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(failure)
        self.abort()

    def _broke(self, why: str, *, sent: bool) -> TransportFailure:
        begun = self._received > 0
        return TransportFailure(ErrorCode.CONNECTION_ERROR, f"the connection broke: {why}", sent=sent, begun=begun)

    def _decoded(self, body: bytes) -> bytes:
        """The body without its content encoding; raises `TransportFailure` where that cannot be undone."""
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"identity":
            return body
        most = self._upstream.max_response_bytes
        try:
            inflater = zlib.decompressobj(INFLATED[encoding])
            plain = inflater.decompress(body, most + 1)
        except (KeyError, zlib.error) as error:
            raise TransportFailure(
                ErrorCode.INVALID_RESPONSE, "the answer comes in an encoding that was not asked for", sent=True
            ) from error
        if len(plain) > most:
            raise too_long(self._upstream)
        return plain


_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_KEPT: Final = _FRAMING | {b"content-encoding", b"x-request-id", b"retry-after", b"retry-after-ms"}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")

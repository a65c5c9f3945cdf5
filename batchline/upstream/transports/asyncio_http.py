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

from batchline.models.error_codes import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream.transports.base import (
    DeadlinePassed,
    HttpReply,
    TransportFailure,
    build_headers,
    response_too_long,
)
from batchline.upstream.transports.keepalive import KEEPALIVE_OPTIONS

IDLE_TIMEOUT_S: Final = 60.0
"""After which an unused connection is closed; servers close theirs after 5 s and more."""

MAX_HEAD_BYTES: Final = 2**20
ZLIB_WBITS: Final = {b"gzip": 31, b"deflate": 15}
"""Encodings that are undone though they were not asked for, with zlib's window bits for them."""


class AsyncioHttpTransport:
    """Sends over keep-alive connections, as many as are under way; follows no redirect."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        base_url = urlsplit(upstream.base_url)
        self._authority = base_url.netloc
        self._host, self._port = base_url.hostname or "", base_url.port or 80
        self._loop = asyncio.get_running_loop()
        self._request_heads: dict[str, bytes] = {}
        self._idle_connections: list[_HttpConnection] = []
        self._connections: set[_HttpConnection] = set()
        self._check_interval_s = max(0.005, min(upstream.idle_timeout_s, upstream.total_timeout_s, 10.0) / 20)
        self._check_timer: asyncio.TimerHandle | None = None

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST that JSON body; the timeouts are the upstream's."""
        head = self._request_heads.get(path) or self._build_head(path)
        start = time.monotonic()
        if self._idle_connections:
            connection = self._idle_connections.pop()
        else:
            connection = await self._connect()
            if time.monotonic() > valid_until:
                connection.abort()
                raise DeadlinePassed
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        try:
            reply = await connection.exchange(request, start)
        except BaseException:
            connection.abort()
            raise
        if connection.can_be_reused():
            self._idle_connections.append(connection)
        return reply

    def _build_head(self, path: str) -> bytes:
        """The request's head up to the value of its last header, the length of the body."""
        target_path = urlsplit(self._upstream.url_for(path)).path
        # Without this header a server may choose any encoding. Compression costs both sides more than the few
        # kilobytes that it would save on a local network; other upstreams are called by the TLS transport.
        headers = {"host": self._authority, "accept-encoding": "identity", **build_headers(self._upstream, path)}
        lines = [f"POST {target_path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = self._request_heads[path] = ("\r\n".join(lines) + "\r\ncontent-length: ").encode()
        return head

    async def _connect(self) -> "_HttpConnection":
        """A new connection."""
        try:
            async with asyncio.timeout(self._upstream.connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: _HttpConnection(self._upstream, self._on_closed), self._host, self._port
                )
        except TimeoutError as error:
            raise TransportFailure(ErrorCode.TIMEOUT, "no connection: timed out", sent=False) from error
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise TransportFailure(ErrorCode.CONNECTION_ERROR, f"no connection: {reason}", sent=False) from error
        self._connections.add(connection)
        if self._check_timer is None:
            self._check_timer = self._loop.call_later(self._check_interval_s, self._check_timeouts)
        return connection

    def _on_closed(self, connection: "_HttpConnection") -> None:
        self._connections.discard(connection)
        with suppress(ValueError):
            self._idle_connections.remove(connection)

    def _check_timeouts(self) -> None:
        """End exchanges that take too long and connections that nobody uses: one timer for all."""
        now = time.monotonic()
        for connection in list(self._connections):
            connection.check_timeouts(now)
        self._check_timer = (
            self._loop.call_later(self._check_interval_s, self._check_timeouts) if self._connections else None
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._check_timer is not None:
            self._check_timer.cancel()
        for connection in list(self._connections):
            connection.abort()


class _HttpConnection(asyncio.Protocol):
    """One connection: one exchange at a time."""

    def __init__(self, upstream: Upstream, on_closed: Any) -> None:
        self._upstream = upstream
        self._on_closed = on_closed
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reply_received: asyncio.Future[None] | None = None
        self._reset(time.monotonic())

    def _reset(self, start: float) -> None:
        self._start = self._last_received_at = start
        self._received_bytes = self._body_bytes = 0
        self._first_byte_at = 0.0
        self._status_code = 0
        self._is_complete = self._is_in_body = self._can_keep_alive = False
        self._body_blocks: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    # What the transport asks

    async def exchange(self, request: bytes, start: float) -> HttpReply:
        """Send those bytes and return the whole reply; raises `TransportFailure`."""
        transport = self._transport
        if transport is None:
            raise self._connection_error("it was closed by the server", sent=False)
        self._reset(start)
        self._reply_received = asyncio.get_running_loop().create_future()
        transport.write(request)
        await self._reply_received
        return self._build_reply()

    def _build_reply(self) -> HttpReply:
        get_header = self._headers.get
        body = self._body_blocks[0] if len(self._body_blocks) == 1 else b"".join(self._body_blocks)
        if self._headers:
            body = self._decode_body(body)
        return HttpReply(
            self._status_code,
            body,
            self._first_byte_at - self._start,
            _decode_header(get_header(b"x-request-id")),
            _decode_header(get_header(b"retry-after")),
            _decode_header(get_header(b"retry-after-ms")),
        )

    def can_be_reused(self) -> bool:
        """Whether another exchange may follow; the connection is ended otherwise."""
        if self._can_keep_alive and self._transport is not None and not self._transport.is_closing():
            return True
        self.abort()
        return False

    def check_timeouts(self, now: float) -> None:
        """End what takes too long."""
        upstream, silence_s = self._upstream, now - self._last_received_at
        if self._reply_received is None:
            if silence_s > IDLE_TIMEOUT_S:
                self.abort()
        elif silence_s > upstream.idle_timeout_s or now - self._start > upstream.total_timeout_s:
            response_started = self._received_bytes > 0
            self._fail_exchange(
                TransportFailure(
                    ErrorCode.TIMEOUT, "no answer in time", sent=True, response_started=response_started
                )
            )

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and let the system notice a peer that has vanished."""
        self._transport = transport  # type: ignore[assignment] # a connection's is one
        raw_socket = transport.get_extra_info("socket")
        if raw_socket is not None:
            for option in KEEPALIVE_OPTIONS:
                raw_socket.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what nobody asked for ends the connection."""
        reply_received = self._reply_received
        if reply_received is None:
            self.abort()
            return
        self._last_received_at = time.monotonic()
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._fail_exchange(self._connection_error(f"it is not HTTP ({type(error).__name__})", sent=True))
                return
            self.abort()  # the answer is whole, what follows it is not
        if not self._is_in_body and self._received_bytes > MAX_HEAD_BYTES:
            self._fail_exchange(self._connection_error("the answer's head has no end", sent=True))
        if self._is_complete and not reply_received.done():
            self._finish_exchange()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way, unless it was to end with the connection."""
        self._transport = None
        self._on_closed(self)
        if self._reply_received is None or self._reply_received.done():
            return
        is_framed = not _FRAMING_HEADERS.isdisjoint(self._headers)
        if self._is_in_body and exc is None and not is_framed:
            self._status_code = self._parser.get_status_code()
            self._is_complete = True
            self._finish_exchange()
        else:
            reason = "the server closed it" if exc is None else str(exc) or type(exc).__name__
            when = " within the answer" if self._received_bytes else " before it answered"
            self._fail_exchange(self._connection_error(reason + when, sent=True))

    # What the parser tells

    def on_message_begin(self) -> None:
        """End a connection on which something follows the answer that was asked for."""
        if self._is_complete:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that matter."""
        lower_name = name.lower()
        if lower_name in _USED_HEADERS and not self._is_complete:
            self._headers[lower_name] = value

    def on_headers_complete(self) -> None:
        """Refuse an answer that says that it is too long."""
        if self._is_complete or self._parser.get_status_code() < 200:
            return
        self._is_in_body = True
        content_length = self._headers.get(b"content-length", b"")
        if content_length.isdigit() and int(content_length) > self._upstream.max_response_bytes:
            self._fail_exchange(response_too_long(self._upstream))

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self._body_blocks:
            self._first_byte_at = self._last_received_at
        self._body_bytes += len(body)
        if self._body_bytes > self._upstream.max_response_bytes:
            self._fail_exchange(response_too_long(self._upstream))
        elif not self._is_complete:
            self._body_blocks.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was one that comes before the answer (1xx)."""
        if self._is_complete:
            return
        status_code = self._parser.get_status_code()
        if status_code < 200:
            self._headers.clear()
        else:
            # A second answer in the same bytes is parsed before this one is read.
            self._status_code = status_code
            self._is_complete = True
            self._can_keep_alive = self._parser.should_keep_alive()

    # How an exchange ends

    def _finish_exchange(self) -> None:
        reply_received, self._reply_received = self._reply_received, None
        self._first_byte_at = self._first_byte_at or self._last_received_at
        if reply_received is not None and not reply_received.done():
            reply_received.set_result(None)

    def _fail_exchange(self, failure: TransportFailure) -> None:
        if self._reply_received is not None and not self._reply_received.done():
            self._reply_received.set_exception(failure)
        self.abort()

    def _connection_error(self, reason: str, *, sent: bool) -> TransportFailure:
        response_started = self._received_bytes > 0
        return TransportFailure(
            ErrorCode.CONNECTION_ERROR,
            f"the connection broke: {reason}",
            sent=sent,
            response_started=response_started,
        )

    def _decode_body(self, body: bytes) -> bytes:
        """The body without its content encoding; raises `TransportFailure` where that cannot be undone."""
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"identity":
            return body
        max_bytes = self._upstream.max_response_bytes
        try:
            decompressor = zlib.decompressobj(ZLIB_WBITS[encoding])
            decoded = decompressor.decompress(body, max_bytes + 1)
        except (KeyError, zlib.error) as error:
            raise TransportFailure(
                ErrorCode.INVALID_RESPONSE, "the answer comes in an encoding that was not asked for", sent=True
            ) from error
        if len(decoded) > max_bytes:
            raise response_too_long(self._upstream)
        return decoded


_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})
_USED_HEADERS: Final = _FRAMING_HEADERS | {b"content-encoding", b"x-request-id", b"retry-after", b"retry-after-ms"}


def _decode_header(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")

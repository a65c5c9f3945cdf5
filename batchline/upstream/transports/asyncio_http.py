"""The transport for `http://` upstreams: HTTP/1.1 on the dispatcher's loop, parsed by httptools.

A library with its own thread passes every reply on under the GIL, which at full speed costs more than the
exchange. Here a request is one write and one read. Framing follows RFC 9112, with the exceptions that browsers
make (`lenient_parser.py`); anything unusual in a reply closes its connection.
"""

import asyncio
import time
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
    broken_rule,
    build_headers,
    keep_headers,
    response_too_long,
)
from batchline.upstream.transports.content_encoding import decode_body
from batchline.upstream.transports.keepalive import KEEPALIVE_OPTIONS
from batchline.upstream.transports.lenient_parser import (
    LenientParser,
    RuleBroken,
    describe_broken_rule,
    new_parser,
)

IDLE_TIMEOUT_S: Final = 60.0
"""Seconds after which an idle connection is closed; servers close theirs after 5 s or more."""

MAX_HEAD_BYTES: Final = 2**20


class AsyncioHttpTransport:
    """Sends over keep-alive connections, one per request in flight; follows no redirects."""

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
        """POST the JSON body, with the upstream's timeouts; raises `DeadlinePassed` as `Transport.send` says."""
        head = self._request_heads.get(path) or self._build_head(path)
        start = time.monotonic()
        # One write, so that a small request leaves in one packet.
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        is_reused = bool(self._idle_connections)
        # The one used last: the server is least likely to have closed it.
        connection = self._idle_connections.pop() if is_reused else await self._connect(valid_until)
        try:
            reply = await connection.exchange(request, start)
        except BaseException as error:  # also if cancelled: its reply would be taken for that of the next request
            connection.abort()
            if is_reused and isinstance(error, TransportFailure) and error.closed_before_reply:
                return await self._send_again(request, start, error, valid_until)
            raise
        if connection.can_be_reused():
            self._idle_connections.append(connection)
        return reply

    async def _send_again(
        self, request: bytes, start: float, failure: TransportFailure, valid_until: float
    ) -> HttpReply:
        """Send the request over a new connection, after the server has closed the one that it was sent on.

        A server may close an idle connection at the moment when the next request is sent on it. Browsers and other
        clients then send the request again; the caller counts one attempt.
        """
        try:
            connection = await self._connect(valid_until)
        except DeadlinePassed:
            raise failure from None
        except TransportFailure as error:
            error.sent = failure.sent
            raise
        try:
            reply = await connection.exchange(request, start, silent_since=time.monotonic())
        except BaseException:
            connection.abort()
            raise
        if connection.can_be_reused():
            self._idle_connections.append(connection)
        return reply

    def _build_head(self, path: str) -> bytes:
        """Return the request's head up to the value of its last header, Content-Length."""
        target_path = urlsplit(self._upstream.url_for(path)).path
        # Without Accept-Encoding a server may choose any encoding. On a local network compression costs both
        # sides more than it saves; remote upstreams are called by the TLS transport.
        headers = {"host": self._authority, "accept-encoding": "identity", **build_headers(self._upstream, path)}
        lines = [f"POST {target_path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = self._request_heads[path] = ("\r\n".join(lines) + "\r\ncontent-length: ").encode()
        return head

    async def _connect(self, valid_until: float) -> "_HttpConnection":
        """Open a connection; raises `TransportFailure` with `sent` False, and `DeadlinePassed`."""
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
        if time.monotonic() > valid_until:
            connection.abort()
            raise DeadlinePassed
        return connection

    def _on_closed(self, connection: "_HttpConnection") -> None:
        self._connections.discard(connection)
        with suppress(ValueError):
            self._idle_connections.remove(connection)

    def _check_timeouts(self) -> None:
        """Apply the timeouts to all connections."""
        # One timer for all, since a timer per request costs CPU at full speed.
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
    """One connection, for one exchange at a time."""

    def __init__(self, upstream: Upstream, on_closed: Any) -> None:
        self._upstream = upstream
        self._on_closed = on_closed
        self._parser: Any = new_parser(self)
        self._transport: asyncio.Transport | None = None
        self._reply_received: asyncio.Future[None] | None = None
        now = time.monotonic()
        self._reset(now, now)

    def _reset(self, start: float, silent_since: float) -> None:
        self._start = start
        self._last_received_at = silent_since
        self._received_bytes = self._body_bytes = 0
        self._first_byte_at = 0.0
        self._status_code = 0
        self._is_complete = self._is_in_body = self._can_keep_alive = False
        self._head_blocks: list[bytes] = []
        self._body_blocks: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._kept_headers: list[tuple[str, str]] = []

    # Called by the transport.

    async def exchange(self, request: bytes, start: float, silent_since: float | None = None) -> HttpReply:
        """Send the request and return the complete reply; raises `TransportFailure`.

        The timeout of silence counts from `silent_since`, by default also from `start`.
        """
        self._reset(start, start if silent_since is None else silent_since)
        transport = self._transport
        if transport is None:
            raise self._failure("the connection broke: the server closed it", sent=False)
        self._reply_received = asyncio.get_running_loop().create_future()
        transport.write(request)
        await self._reply_received
        get_header = self._headers.get
        body = self._body_blocks[0] if len(self._body_blocks) == 1 else b"".join(self._body_blocks)
        encodings = get_header(b"content-encoding")
        if encodings is not None:
            body = decode_body(body, encodings.decode("latin-1"), self._status_code, self._upstream)
        return HttpReply(
            self._status_code,
            body,
            self._first_byte_at - self._start,
            _decode_header(get_header(b"x-request-id")),
            tuple(self._kept_headers),
        )

    def can_be_reused(self) -> bool:
        """Return True if another exchange may follow; else close the connection."""
        transport = self._transport
        if (
            self._can_keep_alive
            and transport is not None
            and not transport.is_closing()
            # A server may answer before it has the whole request, and not read the rest.
            and not transport.get_write_buffer_size()
        ):
            return True
        self.abort()
        return False

    def check_timeouts(self, now: float) -> None:
        """Fail an exchange that takes too long, or close a connection that has been idle for too long."""
        upstream, silence_s = self._upstream, now - self._last_received_at
        if self._reply_received is None:
            if silence_s > IDLE_TIMEOUT_S:
                self.abort()
        elif silence_s > upstream.idle_timeout_s or now - self._start > upstream.total_timeout_s:
            self._fail_exchange(self._failure("no answer in time", code=ErrorCode.TIMEOUT))

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport and enable TCP keepalive."""
        self._transport = transport  # type: ignore[assignment] # TCP has this subclass
        raw_socket = transport.get_extra_info("socket")
        if raw_socket is not None:
            for option in KEEPALIVE_OPTIONS:
                raw_socket.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        """Parse the data; unsolicited data closes the connection."""
        reply_received = self._reply_received
        # Data on an idle connection would be taken for the reply to the next request.
        if reply_received is None:
            self.abort()
            return
        self._last_received_at = time.monotonic()
        self._received_bytes += len(data)
        self._parse(data)
        if not self._is_in_body:
            self._head_blocks.append(data)
            if self._received_bytes > MAX_HEAD_BYTES:
                self._fail_exchange(self._failure("the connection broke: the answer's head is too long"))
        if self._is_complete and not reply_received.done():
            self._finish_exchange()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._is_complete:
                self.abort()  # only the data after the reply is not HTTP
            elif self._is_in_body or isinstance(self._parser, LenientParser):
                self._fail_exchange(self._failure(broken_rule(describe_broken_rule(error))))
            else:
                self._headers.clear()
                self._kept_headers.clear()
                self._parser = LenientParser(self)
                self._parse(b"".join([*self._head_blocks, data]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange in flight, unless the end of the connection marks the end of its body."""
        self._transport = None
        self._on_closed(self)
        if self._reply_received is None or self._reply_received.done():
            return
        # A body without a length ends with the connection (RFC 9112, 6.3); if it has one, it was cut short.
        if self._is_in_body and exc is None and not self._has_framed_body():
            self._status_code = self._parser.get_status_code()
            self._is_complete = True
            self._finish_exchange()
        else:
            reason = "the server closed it" if exc is None else str(exc) or type(exc).__name__
            when = " within the answer" if self._received_bytes else " before it answered"
            self._fail_exchange(self._failure(f"the connection broke: {reason}{when}"))

    def _has_framed_body(self) -> bool:
        is_chunked = self._headers.get(b"transfer-encoding", b"").strip().lower().endswith(b"chunked")
        return is_chunked or b"content-length" in self._headers

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Close the connection if another message follows the reply."""
        if self._is_complete:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that are used."""
        if self._is_in_body:  # a trailer, or a header of what follows the reply
            return
        lower_name = name.lower()
        if lower_name in _USED_HEADERS:
            previous = self._headers.get(lower_name)
            self._headers[lower_name] = value if previous is None else previous + b"," + value
        elif self._parser.get_status_code() >= 300:
            self._kept_headers += keep_headers([(name.decode("latin-1"), value.decode("latin-1"))])

    def on_headers_complete(self) -> None:
        """Fail the exchange if Content-Length is above the limit."""
        if self._is_complete or self._parser.get_status_code() < 200:
            return
        content_length = self._headers.get(b"content-length")
        if content_length is not None:
            if b"transfer-encoding" in self._headers:
                raise RuleBroken("it has both Transfer-Encoding and Content-Length")
            if int(content_length) > self._upstream.max_response_bytes:
                self._end_long_reply()
        self._is_in_body = True

    def on_body(self, body: bytes) -> None:
        """Append to the body; fail the exchange if it is too long."""
        if not self._body_blocks:
            self._first_byte_at = self._last_received_at
        self._body_bytes += len(body)
        if self._is_complete:
            return
        if self._body_bytes > self._upstream.max_response_bytes:
            self._end_long_reply()
        else:
            self._body_blocks.append(body)

    def on_message_complete(self) -> None:
        """Complete the reply, or skip an interim response (1xx)."""
        if self._is_complete:
            return
        status_code = self._parser.get_status_code()
        if status_code < 200:
            self._headers.clear()
        else:
            # Copied now: if a second message follows in the same data, the parser's state is that of the second.
            self._status_code = status_code
            self._is_complete = True
            self._can_keep_alive = self._parser.should_keep_alive()

    # The end of an exchange.

    def _end_long_reply(self) -> None:
        status_code = self._parser.get_status_code()
        if status_code < 300:
            self._fail_exchange(response_too_long(self._upstream))
        else:  # without the rest of its body, an error still says by its status what to do
            self._status_code = status_code
            self._is_complete = True

    def _finish_exchange(self) -> None:
        reply_received, self._reply_received = self._reply_received, None
        self._first_byte_at = self._first_byte_at or self._last_received_at
        if reply_received is not None and not reply_received.done():
            reply_received.set_result(None)

    def _fail_exchange(self, failure: TransportFailure) -> None:
        if self._reply_received is not None and not self._reply_received.done():
            self._reply_received.set_exception(failure)
        self.abort()

    def _failure(
        self, message: str, *, code: ErrorCode = ErrorCode.CONNECTION_ERROR, sent: bool = True
    ) -> TransportFailure:
        return TransportFailure(code, message, sent=sent, response_started=self._received_bytes > 0)


_USED_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"x-request-id"})


def _decode_header(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")

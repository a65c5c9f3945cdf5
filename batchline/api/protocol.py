"""uvicorn's HTTP protocol, with an end to the patience for clients that send nothing, or no HTTP."""

from __future__ import annotations

import asyncio
import resource
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batchline.api.errors import ErrorObject, ErrorResponse

HEAD_BYTES: Final = 65_536
"""How long the head of a request may be, beyond what comes with its first bytes."""

HEAD_S: Final = 15.0
"""How long the head of a request may take."""

LINGER_S: Final = 30.0
"""How long a body may still come whose request is answered already."""


STALL_S: Final = 120.0
"""How long a client may leave an answer unread that has filled what lies between."""


MOST_CONNECTIONS: Final = 2_000
"""Open connections; if there are more, the one that has been idle for longest is closed."""

FILES: Final = MOST_CONNECTIONS + 2_000
"""Open files that a server should be allowed: connections from clients, to upstreams, storage and the database."""

_idle: Final[dict[Protocol, None]] = {}
"""Connections of this process on which no request is under way, by the time at which they came to be so."""


def raise_file_limit() -> None:
    """Let this process open as many files as it needs, so far as the system's hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Protocol(HttpToolsProtocol):
    """Closes connections that hold a place and do not use it, or a head without an end."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None
    """Of the head that is under way, behind the piece in which it began."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._close_in(HEAD_S)
        _idle[self] = None
        if len(self.connections) > MOST_CONNECTIONS:
            next(iter(_idle)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._go_on()
        self._is_read()
        _idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is more of a head than there may be."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._head_bytes = None
                self._refuse(431, "Request Header Fields Too Large", "the head of the request is too long")
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """Wait for the client to read what is there."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting."""
        self._is_read()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        self._close_in(HEAD_S)
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Leave the time to the app."""
        self._go_on()
        self._head_bytes = None
        _idle.pop(self, None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Leave the time to the app."""
        self._go_on()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that nobody wants any more, but not for long."""
        super().on_response_complete()
        if not self.transport.is_closing():
            _idle[self] = None
        if self.cycle.more_body:
            self._close_in(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, as all errors are told."""
        self._refuse(400, "Bad Request", msg)

    def _refuse(self, status: int, reason: str, message: str) -> None:
        error = ErrorObject(message=message, type="invalid_request_error", param=None, code=None)
        body = ErrorResponse(error=error).model_dump_json().encode()
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(body), body))
        self.transport.close()

    def _is_read(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _close_in(self, seconds: float) -> None:
        self._go_on()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

"""uvicorn's HTTP protocol, with an end to the patience for clients that send nothing, or no HTTP."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batchline.api.errors import ErrorObject, ErrorResponse

HEAD_S: Final = 15.0
"""How long the head of a request may take."""

LINGER_S: Final = 30.0
"""How long a body may still come whose request is answered already."""


class Protocol(HttpToolsProtocol):
    """Closes connections that hold a place and do not use it."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._close_in(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._go_on()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        self._close_in(HEAD_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Leave the time to the app."""
        self._go_on()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Leave the time to the app."""
        self._go_on()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that nobody wants any more, but not for long."""
        super().on_response_complete()
        if self.cycle.more_body:
            self._close_in(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, as all errors are told."""
        error = ErrorObject(message=msg, type="invalid_request_error", param=None, code=None)
        body = ErrorResponse(error=error).model_dump_json().encode()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self.transport.close()

    def _close_in(self, seconds: float) -> None:
        self._go_on()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

"""Limits on concurrent requests, body sizes and body durations, so that one client cannot block others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Set
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchline.api.concurrency import REQUEST_CONTEXT, FairLimiter
from batchline.api.errors import ApiError, error_response, service_unavailable

MAX_REQUESTS: Final = 1_000
MAX_REQUESTS_PER_MEMBER: Final = 250
PROBE_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Health check paths; never limited, since orchestrators restart a server that does not answer them."""

MAX_BODY_BYTES: Final = 2**20
MAX_RETRY_BODY_BYTES: Final = 64 * 2**20
"""Maximum size of a body that lists request ids, of which there may be a million."""

STREAM_SUFFIXES: Final = ("/content", "/results", "/results.jsonl", "/output.jsonl", "/errors.jsonl")
"""Endings of paths with streamed responses: each stream holds up to 60 MB of a file."""

MAX_STREAMS: Final = 64
MAX_STREAMS_PER_MEMBER: Final = 3
SLOT_TIMEOUT_S: Final = 60.0
"""Seconds that a stream or a long body waits for a slot."""

MAX_LONG_BODIES: Final = 2
MAX_LONG_BODIES_PER_MEMBER: Final = 1
"""Long bodies are held in memory; more of them wait."""

BODY_IDLE_TIMEOUT_S: Final = 30.0
BODY_BASE_TIMEOUT_S: Final = 60.0
MIN_BODY_BYTES_PER_S: Final = 1_024
"""A body may take `BODY_BASE_TIMEOUT_S` plus 1 s per 1,024 bytes, with pauses up to `BODY_IDLE_TIMEOUT_S`."""


UPLOAD_PATHS: Final = frozenset({"/v1/files"})


class RequestLimitsMiddleware:
    """Refuses requests above the limits, wherever in the app their body is read."""

    def __init__(self, app: ASGIApp, *, upload_paths: Set[str] = UPLOAD_PATHS) -> None:
        self._app = app
        self._upload_paths = upload_paths
        self._active_requests = 0
        self._active_per_member: Counter[str] = Counter()
        self._long_body_limiter = FairLimiter(MAX_LONG_BODIES, MAX_LONG_BODIES_PER_MEMBER)
        self._stream_limiter = FairLimiter(MAX_STREAMS, MAX_STREAMS_PER_MEMBER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a limited body, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._active_requests >= MAX_REQUESTS and scope["path"] not in PROBE_PATHS:
            await error_response(service_unavailable("the server is overloaded; try again"))(scope, receive, send)
            return
        context = REQUEST_CONTEXT.get()
        member_id = "" if context is None else context.member_id or ""
        if member_id and self._active_per_member[member_id] >= MAX_REQUESTS_PER_MEMBER:
            message = f"you have {MAX_REQUESTS_PER_MEMBER} requests in flight; wait for some of them to end"
            await error_response(ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"}))(
                scope, receive, send
            )
            return
        self._active_requests += 1
        self._active_per_member[member_id] += 1
        try:
            async with self._memory_slot(scope["path"], member_id or None):
                path, max_bytes = scope["path"], MAX_BODY_BYTES
                if path.endswith("/retry-requests"):
                    max_bytes = MAX_RETRY_BODY_BYTES
                # An upload is limited by the file size instead.
                body = _LimitedBody(receive, None if path in self._upload_paths else max_bytes)
                await self._app(scope, body, send)
        except ApiError as refusal:
            await error_response(refusal)(scope, receive, send)
        finally:
            self._active_requests -= 1
            self._active_per_member[member_id] -= 1
            if not self._active_per_member[member_id]:
                del self._active_per_member[member_id]

    def _memory_slot(self, path: str, member_id: str | None) -> AbstractAsyncContextManager[None]:
        """Return a context that holds a slot for a request that takes much memory; raises `ApiError` (503)."""
        limiters = {"/retry-requests": self._long_body_limiter}
        limiters |= dict.fromkeys(STREAM_SUFFIXES, self._stream_limiter)
        limiter = next((limiter for suffix, limiter in limiters.items() if path.endswith(suffix)), None)
        message = "you have too many large requests in flight; wait for some of them to end"
        return nullcontext() if limiter is None else limiter.slot_within(member_id, SLOT_TIMEOUT_S, message)


class _LimitedBody:
    """An incoming body; raises `ApiError` (408, 413)."""

    def __init__(self, receive: Receive, max_bytes: int | None) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._started_at = time.monotonic()
        self._received_bytes = 0
        self._is_complete = False

    async def __call__(self) -> Message:
        """Return the next message; once the body is complete, without a timeout."""
        if self._is_complete:
            return await self._receive()
        remaining_s = (
            self._started_at + BODY_BASE_TIMEOUT_S + self._received_bytes / MIN_BODY_BYTES_PER_S - time.monotonic()
        )
        try:
            async with asyncio.timeout(max(0.0, min(BODY_IDLE_TIMEOUT_S, remaining_s))):
                message = await self._receive()
        except TimeoutError:
            # Closes the connection, on which the rest of the body could trickle in for ever.
            headers, words = {"Connection": "close"}, "the request came too slowly"
            raise ApiError(408, words, code="request_timeout", headers=headers) from None
        self._is_complete = not message.get("more_body")
        self._received_bytes += len(message.get("body", b""))
        if self._max_bytes is not None and self._received_bytes > self._max_bytes:
            raise ApiError(413, f"the body is longer than {self._max_bytes} bytes", code="request_too_large")
        return message

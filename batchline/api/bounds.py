"""Bounds on what one client can hold up: requests at once, the size of a body, and the time that it takes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchline.api.errors import Refusal, answer_of, unavailable
from batchline.api.places import SEAT, Places

MOST_AT_ONCE: Final = 1_000
MOST_OF_A_MEMBER: Final = 250
PROBES: Final = frozenset({"/healthz", "/readyz"})
"""What is asked by who would end a server that does not answer."""

BODY_BYTES: Final = 2**20
NAMES_BYTES: Final = 64 * 2**20
"""Of a body that names requests, of which there may be a million."""

STREAMED: Final = ("/content", "/results", "/results.jsonl", "/output.jsonl", "/errors.jsonl")
"""Endings of paths whose answers are streamed: each stream holds up to 60 MB of a file."""

STREAMS: Final = 64
STREAMS_OF_A_MEMBER: Final = 3
PLACE_S: Final = 60.0
"""Seconds that such a request waits for its place."""

LONG_BODIES: Final = 2
LONG_BODIES_OF_A_MEMBER: Final = 1
"""Such bodies are held in memory; more of them wait."""

IDLE_S: Final = 30.0
START_S: Final = 60.0
LEAST_BYTES_A_S: Final = 1_024
"""A body may take `START_S` and a second for so many bytes, and no pause in it more than `IDLE_S`."""


def _takes_files(path: str) -> bool:
    return path == "/v1/files"


class Bounds:
    """Refuses what goes over the bounds, wherever in the app the body is read."""

    def __init__(
        self, app: ASGIApp, *, most_at_once: int = MOST_AT_ONCE, takes_files: Callable[[str], bool] = _takes_files
    ) -> None:
        self._app = app
        self._takes_files = takes_files
        self._most_at_once = most_at_once
        self._now = 0
        self._of_members: Counter[str] = Counter()
        self._long_bodies = Places(LONG_BODIES, LONG_BODIES_OF_A_MEMBER)
        self._streams = Places(STREAMS, STREAMS_OF_A_MEMBER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, with a body that is bounded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._now >= self._most_at_once and scope["path"] not in PROBES:
            await answer_of(unavailable("the server has too much to do; try again"))(scope, receive, send)
            return
        seat = SEAT.get()
        member = "" if seat is None else seat.member or ""
        if member and self._of_members[member] >= MOST_OF_A_MEMBER:
            message = f"you have {MOST_OF_A_MEMBER} requests under way; wait for some of them to end"
            await answer_of(Refusal(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"}))(
                scope, receive, send
            )
            return
        self._now += 1
        self._of_members[member] += 1
        try:
            async with self._place(scope, member or None):
                await self._app(scope, _Body(receive, self._most_bytes(scope["path"])), send)
        except Refusal as refusal:
            await answer_of(refusal)(scope, receive, send)
        finally:
            self._now -= 1
            self._of_members[member] -= 1
            if not self._of_members[member]:
                del self._of_members[member]

    @asynccontextmanager
    async def _place(self, scope: Scope, member: str | None) -> AsyncIterator[None]:
        """Hold a place for a request that takes much memory; raises `Refusal` (503)."""
        places = None
        if scope["path"].endswith("/retry-requests"):
            places = self._long_bodies
        elif scope["path"].endswith(STREAMED):
            places = self._streams
        async with AsyncExitStack() as held:
            if places is not None:
                try:
                    async with asyncio.timeout(PLACE_S):
                        await held.enter_async_context(places.place(member))
                except TimeoutError:
                    raise unavailable("you read too much at once; wait for some of it to end") from None
            yield

    def _most_bytes(self, path: str) -> int | None:
        if self._takes_files(path):
            return None  # the file's own limit holds
        return NAMES_BYTES if path.endswith("/retry-requests") else BODY_BYTES


class _Body:
    """A body on its way in; raises `Refusal` (408, 413)."""

    def __init__(self, receive: Receive, most_bytes: int | None) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._began = time.monotonic()
        self._bytes = 0
        self._is_read = False

    async def __call__(self) -> Message:
        """The next piece; once all is there, whatever the server tells, however long that takes."""
        if self._is_read:
            return await self._receive()
        left = self._began + START_S + self._bytes / LEAST_BYTES_A_S - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(IDLE_S, left))):
                message = await self._receive()
        except TimeoutError:
            # Closes the connection, on which the rest of the body could trickle in for ever.
            headers, words = {"Connection": "close"}, "the request came too slowly"
            raise Refusal(408, words, code="request_timeout", headers=headers) from None
        self._is_read = not message.get("more_body")
        self._bytes += len(message.get("body", b""))
        if self._most_bytes is not None and self._bytes > self._most_bytes:
            raise Refusal(413, f"the body is longer than {self._most_bytes} bytes", code="request_too_large")
        return message

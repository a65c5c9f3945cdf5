"""Places: how much of what all clients share one member may hold at a time, so that something is left for others.

Every handler that is not a coroutine runs on a thread, and there are few of them. A member who asks for much at
once waits for places of their own; who asks for little finds one free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.errors import Refusal

THREADS: Final = 48
THREADS_A_MEMBER: Final = 8
POOL: Final = 64
"""Threads of the server's pool; what is above `THREADS` is left to key lookups."""

MOST_OBJECTS: Final = 1_000
"""Objects and arrays in the JSON of a request."""

P = ParamSpec("P")
T = TypeVar("T")


class Places:
    """Places of which one member has some at most. Nobody in particular, where no key is needed, may have all."""

    def __init__(self, total: int, each: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._each = each
        self._members: dict[str, _Own] = {}

    @asynccontextmanager
    async def place(self, member: str | None) -> AsyncIterator[None]:
        """Hold a place within the block; waits for one of the member's own first, where it is in nobody's way."""
        async with nullcontext() if member is None else self._own(member), self._total:
            yield

    @asynccontextmanager
    async def _own(self, member: str) -> AsyncIterator[None]:
        own = self._members.setdefault(member, _Own(asyncio.Semaphore(self._each)))
        own.users += 1
        try:
            async with own.places:
                yield
        finally:
            own.users -= 1
            if not own.users:
                self._members.pop(member, None)


class _Own:
    """A member's own places, and how many requests hold one or wait for one."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self.places = places
        self.users = 0


class Seat(NamedTuple):
    """Whose request this is, and the threads that it may run on."""

    threads: Places
    member: str | None


SEAT: Final[ContextVar[Seat | None]] = ContextVar("seat", default=None)
"""Of the request that is being answered; None before anyone was let in."""


async def run_aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function on a thread, when the member has a place there."""
    seat = SEAT.get()
    if seat is None:
        return await run_in_threadpool(function, *args, **kwargs)
    async with seat.threads.place(seat.member):
        return await run_in_threadpool(function, *args, **kwargs)


async def in_turn(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Give the blocks, each made on a thread; between them the place is free for others."""
    while (block := await run_aside(next, blocks, None)) is not None:
        yield block


class FairRoute(APIRoute):
    """A route whose handler runs on a thread only while its member has a place."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if iscoroutinefunction(endpoint) else _aside(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The application that each request is passed to."""
        handle = super().get_route_handler()

        async def handle_flat(request: Request) -> Response:
            return await handle(_FlatRequest(request.scope, request.receive))

        return handle_flat


class _FlatRequest(Request):
    """A request whose JSON holds few objects: what is made of brackets takes thirty times their size."""

    async def json(self) -> Any:
        """The body, read; raises `Refusal` for more objects and arrays than any body needs."""
        body = await self.body()
        if body.count(b"[") + body.count(b"{") > MOST_OBJECTS:
            raise Refusal(400, f"the body has more than {MOST_OBJECTS} objects and arrays", code="invalid_value")
        return await super().json()


def _aside(handler: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    @wraps(handler)
    async def handle(*args: P.args, **kwargs: P.kwargs) -> T:
        return await run_aside(handler, *args, **kwargs)

    return handle

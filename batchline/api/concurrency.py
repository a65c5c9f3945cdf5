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

from batchline.api.errors import ApiError

REQUEST_THREADS: Final = 48
THREADS_PER_MEMBER: Final = 8
TOTAL_THREADS: Final = 64
"""Threads of the server's pool; what is above `REQUEST_THREADS` is left to key lookups."""

MAX_JSON_CONTAINERS: Final = 1_000
"""Objects and arrays in the JSON of a request."""

P = ParamSpec("P")
T = TypeVar("T")


class FairLimiter:
    """Places of which one member has some at most. Nobody in particular, where no key is needed, may have all."""

    def __init__(self, total: int, per_member: int) -> None:
        self._semaphore = asyncio.Semaphore(total)
        self._per_member = per_member
        self._member_limits: dict[str, _MemberLimit] = {}

    @asynccontextmanager
    async def slot(self, member_id: str | None) -> AsyncIterator[None]:
        """Hold a place within the block; waits for one of the member's own first, where it is in nobody's way."""
        async with nullcontext() if member_id is None else self._member_slot(member_id), self._semaphore:
            yield

    @asynccontextmanager
    async def _member_slot(self, member_id: str) -> AsyncIterator[None]:
        limit = self._member_limits.setdefault(member_id, _MemberLimit(asyncio.Semaphore(self._per_member)))
        limit.users += 1
        try:
            async with limit.semaphore:
                yield
        finally:
            limit.users -= 1
            if not limit.users:
                self._member_limits.pop(member_id, None)


class _MemberLimit:
    """A member's own places, and how many requests hold one or wait for one."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self.semaphore = semaphore
        self.users = 0


class RequestContext(NamedTuple):
    """Whose request this is, and the threads that it may run on."""

    thread_limiter: FairLimiter
    member_id: str | None


REQUEST_CONTEXT: Final[ContextVar[RequestContext | None]] = ContextVar("seat", default=None)
"""Of the request that is being answered; None before anyone was let in."""


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function on a thread, when the member has a place there."""
    context = REQUEST_CONTEXT.get()
    if context is None:
        return await run_in_threadpool(function, *args, **kwargs)
    async with context.thread_limiter.slot(context.member_id):
        return await run_in_threadpool(function, *args, **kwargs)


async def iterate_in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Give the blocks, each made on a thread; between them the place is free for others."""
    while (block := await run_in_thread(next, blocks, None)) is not None:
        yield block


class FairRoute(APIRoute):
    """A route whose handler runs on a thread only while its member has a place."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(
            path, endpoint if iscoroutinefunction(endpoint) else _run_handler_in_thread(endpoint), **options
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The application that each request is passed to."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedJsonRequest(request.scope, request.receive))

        return handle_bounded


class _BoundedJsonRequest(Request):
    """A request whose JSON holds few objects: what is made of brackets takes thirty times their size."""

    async def json(self) -> Any:
        """The body, read; raises `ApiError` for more objects and arrays than any body needs."""
        body = await self.body()
        if body.count(b"[") + body.count(b"{") > MAX_JSON_CONTAINERS:
            raise ApiError(
                400, f"the body has more than {MAX_JSON_CONTAINERS} objects and arrays", code="invalid_value"
            )
        return await super().json()


def _run_handler_in_thread(handler: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    @wraps(handler)
    async def handle(*args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in_thread(handler, *args, **kwargs)

    return handle

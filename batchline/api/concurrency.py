"""Fair limits on the threads and slots that one member may use, so that some remain for others.

Handlers that are not coroutines run on a small thread pool. A member with many concurrent requests waits for its
own share; a member with few finds a free thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.errors import ApiError, service_unavailable

REQUEST_THREADS: Final = 48
THREADS_PER_MEMBER: Final = 8
TOTAL_THREADS: Final = 64
"""Threads of the server's pool; those above `REQUEST_THREADS` are reserved for key lookups."""

MAX_JSON_CONTAINERS: Final = 1_000
"""Maximum of objects and arrays in a request's JSON."""

P = ParamSpec("P")
T = TypeVar("T")


class FairLimiter:
    """A semaphore with a maximum per member. Anonymous use, if no key is required, has no such maximum."""

    def __init__(self, total: int, per_member: int) -> None:
        self._semaphore = asyncio.Semaphore(total)
        self._per_member = per_member
        # A member's semaphore is kept as long as a request holds it or waits for it.
        self._member_semaphores: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, member_id: str | None) -> AsyncIterator[None]:
        """Hold a slot within the block; one of the member's own is acquired first."""
        own: AbstractAsyncContextManager[None] = nullcontext()
        if member_id is not None:
            own = self._member_semaphores.setdefault(member_id, asyncio.Semaphore(self._per_member))
        # Own slot first: waiting for it must not occupy one of the shared slots.
        async with own, self._semaphore:
            yield

    @asynccontextmanager
    async def slot_within(self, member_id: str | None, timeout_s: float, message: str) -> AsyncIterator[None]:
        """Hold a slot within the block; raises `ApiError` (503) with the message if none is free in time."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    await stack.enter_async_context(self.slot(member_id))
            except TimeoutError:
                raise service_unavailable(message) from None
            yield


class RequestContext(NamedTuple):
    """The member that a request belongs to, and the limiter for its threads."""

    thread_limiter: FairLimiter
    member_id: str | None


REQUEST_CONTEXT: Final[ContextVar[RequestContext | None]] = ContextVar("seat", default=None)
"""Context of the current request; None before authentication."""


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function on a thread once the member has a free slot."""
    context = REQUEST_CONTEXT.get()
    if context is None:
        return await run_in_threadpool(function, *args, **kwargs)
    async with context.thread_limiter.slot(context.member_id):
        return await run_in_threadpool(function, *args, **kwargs)


async def iterate_in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the blocks, each produced on a thread; the slot is released between blocks."""
    while (block := await run_in_thread(next, blocks, None)) is not None:
        yield block


class FairRoute(APIRoute):
    """A route whose handler runs on a thread within its member's limit."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        handler = endpoint
        if not iscoroutinefunction(endpoint):

            @wraps(endpoint)
            async def handler(*args: Any, **kwargs: Any) -> Any:
                return await run_in_thread(endpoint, *args, **kwargs)

        super().__init__(path, handler, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of each request, with bounded JSON."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedJsonRequest(request.scope, request.receive))

        return handle_bounded


class _BoundedJsonRequest(Request):
    """A request with limited JSON nesting: brackets take about thirty times their size in memory."""

    async def json(self) -> Any:
        """Return the parsed body; raises `ApiError` if it has too many objects and arrays."""
        body = await self.body()
        if body.count(b"[") + body.count(b"{") > MAX_JSON_CONTAINERS:
            raise ApiError(
                400, f"the body has more than {MAX_JSON_CONTAINERS} objects and arrays", code="invalid_value"
            )
        return await super().json()

"""The client for asyncio programs: the operations of `Batchline`, each on a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from batchline.client.batch_runs import POLL_INTERVAL_S
from batchline.client.batches import Batches
from batchline.client.client import Batchline
from batchline.client.files import Files
from batchline.client.pagination import HasId, Page
from batchline.engine.services import Services
from batchline.models.batches import BatchResponse, Origin
from batchline.models.settings import Settings

MAX_BLOCK_ITEMS = 100  # a thread switch per item would cost more than reading it

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
L = TypeVar("L", bound=HasId)


class AsyncPage(Generic[L]):
    """One page of a list. Iterating continues through all following pages."""

    def __init__(self, page: Page[L]) -> None:
        self._page = page
        self.data = page.data
        self.has_more = page.has_more
        self.first_id = page.first_id
        self.last_id = page.last_id

    async def next_page(self) -> AsyncPage[L] | None:
        """Return the next page, or None after the last."""
        page = await asyncio.to_thread(self._page.next_page)
        return None if page is None else AsyncPage(page)

    async def __aiter__(self) -> AsyncIterator[L]:
        page: AsyncPage[L] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()


class _Operations(Generic[S]):
    """The asyncio form of the operations of `sync`."""

    def __init__(self, sync: S) -> None:
        self._sync = sync


def _in_thread(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[_Operations[S], P], Coroutine[Any, Any, R]]:
    """Return the method as a coroutine function that runs it on a worker thread."""

    @wraps(method)
    async def call(self: _Operations[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(method, self._sync, *args, **kwargs)

    return call


def _page_in_thread(
    method: Callable[Concatenate[S, P], Page[L]],
) -> Callable[Concatenate[_Operations[S], P], Coroutine[Any, Any, AsyncPage[L]]]:
    """Return the method that returns a page as a coroutine function."""

    @wraps(method)
    async def call(self: _Operations[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncPage[L]:
        return AsyncPage(await asyncio.to_thread(method, self._sync, *args, **kwargs))

    return call


def _iterate_in_thread(
    method: Callable[Concatenate[S, P], Iterator[R]], *, block_size: int
) -> Callable[Concatenate[_Operations[S], P], AsyncIterator[R]]:
    """Return the method as an asynchronous generator; each switch to a thread fetches `block_size` items."""

    @wraps(method)
    async def iterate(self: _Operations[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        items = await asyncio.to_thread(method, self._sync, *args, **kwargs)
        while block := await asyncio.to_thread(lambda: list(islice(items, block_size))):
            for item in block:
                yield item

    return iterate


class AsyncFiles(_Operations[Files]):
    """`Files` for asyncio, created by `AsyncBatchline.files`."""

    create = _in_thread(Files.create)
    list = _page_in_thread(Files.list)
    retrieve = _in_thread(Files.retrieve)
    content = _iterate_in_thread(Files.content, block_size=1)
    delete = _in_thread(Files.delete)


class AsyncBatches(_Operations[Batches]):
    """`Batches` for asyncio, created by `AsyncBatchline.batches`."""

    create = _in_thread(Batches.create)
    retrieve = _in_thread(Batches.retrieve)
    list = _page_in_thread(Batches.list)
    pause = _in_thread(Batches.pause)
    resume = _in_thread(Batches.resume)
    cancel = _in_thread(Batches.cancel)
    retry = _in_thread(Batches.retry)
    retry_requests = _in_thread(Batches.retry_requests)
    results = _iterate_in_thread(Batches.results, block_size=MAX_BLOCK_ITEMS)
    delete = _in_thread(Batches.delete)

    async def wait(
        self, batch_id: str, *, timeout_s: float | None = None, poll_interval_s: float = POLL_INTERVAL_S
    ) -> BatchResponse:
        """Wait like `Batches.wait`, but without occupying a thread between polls."""
        clock = asyncio.get_running_loop().time
        deadline = None if timeout_s is None else clock() + timeout_s
        while (batch := await asyncio.to_thread(self._sync.batch_if_ended, batch_id)) is None:
            if deadline is not None and clock() >= deadline:
                raise TimeoutError(f"batch {batch_id} has not ended after {timeout_s:g} s")
            await asyncio.sleep(poll_interval_s)
        return batch


class AsyncBatchline:
    """`Batchline` for asyncio.

    ```python
    async with AsyncBatchline() as client:
        file = await client.files.create(file="requests.jsonl")
        batch = await client.batches.create(input_file_id=file.id)
        batch = await client.batches.wait(batch.id)
        async for item in client.batches.results(batch.id, status="failed"):
            print(item.custom_id, item.error)
    ```
    """

    def __init__(
        self, settings: Settings | None = None, *, services: Services | None = None, origin: Origin = "api"
    ) -> None:
        self._client = Batchline(settings, services=services, origin=origin)
        self.files = AsyncFiles(self._client.files)
        self.batches = AsyncBatches(self._client.batches)

    async def close(self) -> None:
        """Call `Batchline.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

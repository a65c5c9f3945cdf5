"""The client for asyncio programs: the operations of `Batchline`, each on a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from batchline.client.batches import POLL_INTERVAL_S, Batches, Via
from batchline.client.client import Batchline
from batchline.client.expiry import ExpiresAfter
from batchline.client.files import Files, Upload
from batchline.client.pagination import HasId, Page
from batchline.engine.services import Services
from batchline.models.batches import BatchResponse, BatchResultItem, Origin
from batchline.models.files import FileObject, FilePurpose
from batchline.models.settings import Settings

MAX_BLOCK_ITEMS = 100  # a thread switch per item would cost more than reading it

_T = TypeVar("_T")
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


class AsyncFiles:
    """`Files` for asyncio, created by `AsyncBatchline.files`."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def create(
        self, *, file: Upload, purpose: FilePurpose = "batch", expires_after: ExpiresAfter | None = None
    ) -> FileObject:
        """Call `Files.create`."""
        return await asyncio.to_thread(self._files.create, file=file, purpose=purpose, expires_after=expires_after)

    async def list(self, **query: Any) -> AsyncPage[FileObject]:
        """Call `Files.list`."""
        return AsyncPage(await asyncio.to_thread(lambda: self._files.list(**query)))

    async def retrieve(self, file_id: str) -> FileObject:
        """Call `Files.retrieve`."""
        return await asyncio.to_thread(self._files.retrieve, file_id)

    async def content(self, file_id: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Call `Files.content`."""
        blocks = await asyncio.to_thread(self._files.content, file_id, start=start, end=end)
        async for block in _iterate_in_thread(blocks, block_size=1):
            yield block

    async def delete(self, file_id: str) -> None:
        """Call `Files.delete`."""
        await asyncio.to_thread(self._files.delete, file_id)


class AsyncBatches:
    """`Batches` for asyncio, created by `AsyncBatchline.batches`."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def create(
        self,
        *,
        input_file_id: str,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        output_expires_after: ExpiresAfter | None = None,
        idempotency_key: str | None = None,
        via: Via | None = "process",
    ) -> BatchResponse:
        """Call `Batches.create`."""
        return await asyncio.to_thread(
            self._batches.create,
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            output_expires_after=output_expires_after,
            idempotency_key=idempotency_key,
            via=via,
        )

    async def retrieve(self, batch_id: str, *, include: Sequence[str] = ("analytics",)) -> BatchResponse:
        """Call `Batches.retrieve`."""
        return await asyncio.to_thread(self._batches.retrieve, batch_id, include=include)

    async def list(self, **query: Any) -> AsyncPage[BatchResponse]:
        """Call `Batches.list`."""
        return AsyncPage(await asyncio.to_thread(lambda: self._batches.list(**query)))

    async def resume(self, batch_id: str, *, via: Via | None = "process") -> BatchResponse:
        """Call `Batches.resume`."""
        return await asyncio.to_thread(self._batches.resume, batch_id, via=via)

    async def cancel(self, batch_id: str) -> BatchResponse:
        """Call `Batches.cancel`."""
        return await asyncio.to_thread(self._batches.cancel, batch_id)

    async def retry(self, batch_id: str, *, via: Via | None = "process") -> BatchResponse:
        """Call `Batches.retry`."""
        return await asyncio.to_thread(self._batches.retry, batch_id, via=via)

    async def retry_requests(
        self, batch_id: str, request_ids: Sequence[str], *, via: Via | None = "process"
    ) -> BatchResponse:
        """Call `Batches.retry_requests`."""
        return await asyncio.to_thread(self._batches.retry_requests, batch_id, request_ids, via=via)

    async def results(self, batch_id: str, **query: Any) -> AsyncIterator[BatchResultItem]:
        """Call `Batches.results`."""
        items = await asyncio.to_thread(lambda: self._batches.results(batch_id, **query))
        async for item in _iterate_in_thread(items, block_size=MAX_BLOCK_ITEMS):
            yield item

    async def wait(
        self, batch_id: str, *, timeout_s: float | None = None, poll_interval_s: float = POLL_INTERVAL_S
    ) -> BatchResponse:
        """Wait like `Batches.wait`, but without occupying a thread between polls."""
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        while True:
            batch = await asyncio.to_thread(self._batches.batch_if_ended, batch_id)
            if batch is not None:
                return batch
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                raise TimeoutError(f"batch {batch_id} is not over after {timeout_s:g} s")
            await asyncio.sleep(poll_interval_s)

    async def delete(self, batch_id: str) -> None:
        """Call `Batches.delete`."""
        await asyncio.to_thread(self._batches.delete, batch_id)


async def _iterate_in_thread(items: Iterator[_T], *, block_size: int) -> AsyncIterator[_T]:
    """Yield the items; each switch to a worker thread fetches `block_size` of them."""
    while block := await asyncio.to_thread(lambda: list(islice(items, block_size))):
        for item in block:
            yield item


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

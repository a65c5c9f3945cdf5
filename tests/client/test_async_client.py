"""The client for asyncio does what the other does, without holding up the loop."""

import asyncio

import pytest
from helpers.request_files import write_requests

from batchline import AsyncBatchline
from batchline.models.errors import Conflict, NotFound


def run(here, work):
    """Return what `work` returns for an asynchronous client with the same settings."""

    async def main():
        async with AsyncBatchline(services=here.client.services) as client:
            return await work(client)

    return asyncio.run(main())


def test_async_client_covers_batch_from_creation_to_deletion(make_client, tmp_path):
    here = make_client(upstream={"max_attempts": 1}, chunk_requests=10)
    path = write_requests(
        tmp_path / "r.jsonl", 150, prompt=lambda n: f"{n} simulate:status=400" if n % 50 == 0 else f"{n}?"
    )

    async def work(client: AsyncBatchline) -> None:
        file = await client.files.create(file=path, expires_after=3_600)
        assert await client.files.retrieve(file.id) == file
        made = await client.batches.create(input_file_id=file.id, metadata={"a": "b"})
        ended = await client.batches.wait(made.id, timeout_s=60, poll_interval_s=0.02)
        assert (ended.request_counts.completed, ended.request_counts.failed) == (147, 3)
        assert await client.batches.retrieve(made.id) == ended
        items = [item async for item in client.batches.results(made.id)]
        assert [item.custom_id for item in items] == [f"request-{number}" for number in range(150)]
        failed = [item.id async for item in client.batches.results(made.id, status="failed")]
        content = b"".join([block async for block in client.files.content(ended.output_file_id, start=5, end=99)])
        assert content == b"".join(here.client.files.content(ended.output_file_id))[5:99]
        await client.batches.retry_requests(made.id, failed[:1], via=None)
        with pytest.raises(Conflict):
            await client.batches.retry(made.id)
        await client.batches.resume(made.id)
        again = await client.batches.wait(made.id, timeout_s=60, poll_interval_s=0.02)
        assert again.request_counts.failed == 3
        page = await client.batches.list(limit=1)
        assert [batch.id async for batch in page] == [made.id]
        assert len([each async for each in await client.files.list(limit=1)]) == 3
        await client.batches.delete(made.id)
        await client.files.delete(file.id)
        with pytest.raises(NotFound):
            await client.batches.retrieve(made.id)

    run(here, work)
    assert here.client.services.store.list_objects("") == []


def test_async_client_runs_batches_concurrently_without_blocking_loop(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 8})
    path = write_requests(tmp_path / "r.jsonl", 20)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def work(client: AsyncBatchline) -> list[str]:
        ticking = asyncio.create_task(tick())
        file = await client.files.create(file=path)
        made = [await client.batches.create(input_file_id=file.id) for _ in range(4)]
        ended = await asyncio.gather(*(client.batches.wait(batch.id, timeout_s=60) for batch in made))
        ticking.cancel()
        return [batch.status for batch in ended]

    assert run(here, work) == ["completed"] * 4
    assert ticks > 5


def test_async_client_cancels_batch_after_wait_timeout(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 2})

    async def work(client: AsyncBatchline) -> None:
        file = await client.files.create(file=write_requests(tmp_path / "r.jsonl", 200))
        made = await client.batches.create(input_file_id=file.id)
        with pytest.raises(TimeoutError, match=made.id):
            await client.batches.wait(made.id, timeout_s=0.3, poll_interval_s=0.05)
        assert (await client.batches.cancel(made.id)).status in {"cancelling", "cancelled"}
        assert (await client.batches.wait(made.id, timeout_s=60)).status == "cancelled"

    run(here, work)

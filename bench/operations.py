"""Figures of operating batches: how soon a cancel works, pages at depth, and what a retry of a few costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from batchline import Batchline
from batchline.engine.services import Services
from batchline.models.settings import load_settings
from batchline.simulate import Simulator, SimulatorOptions
from batchline.storage.objects.local import LocalObjectStore
from batchline.storage.objects.store import ObjectWriter
from batchline.storage.records.store import open_records
from bench.figures import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.measuring import World

ROUNDS = 5
QUIET_S = 1.0
"""Without a request for so long, a cancelled batch sends no more."""

RUNNER = """
import sys
from batchline import Batchline
with Batchline() as client:
    client.batches.run(sys.argv[1])
"""


def cancel_latency(world: World) -> Iterator[Row]:
    """Seconds from a cancel to the last request that the batch's runner, another process, sends."""
    taken = [_cancel_s(world) for _ in range(2 if world.quick else ROUNDS)]
    world.samples.setdefault("cancel_latency", {})["cancel"] = [{"seconds": each} for each in taken]
    yield Row("cancel in another process to the last request, slowest", max(taken), most=2.0, unit=" s")


def _cancel_s(world: World) -> float:
    with (
        tempfile.TemporaryDirectory(dir=world.home) as home,
        Simulator(SimulatorOptions(latency_s=0.1)) as upstream,
        Batchline(load_settings(home=home, base_url=upstream.base_url)) as client,
    ):
        file = client.files.create(file=world.file(50_000))
        batch = client.batches.create(input_file_id=file.id, via=None)
        environment = {**world.environment, "BATCHLINE_HOME": home, "OPENAI_BASE_URL": upstream.base_url}
        with subprocess.Popen([sys.executable, "-c", RUNNER, batch.id], env=environment) as runner:
            while upstream.counters()["received"] < 1_000:
                if runner.poll() is not None:
                    raise RuntimeError("the run ended before it was cancelled")
                time.sleep(0.02)
            began = time.perf_counter()
            client.batches.cancel(batch.id)
            last = _last_request_at(upstream)
        if client.batches.retrieve(batch.id).status != "cancelled":
            raise RuntimeError("the batch was not cancelled")
    return max(0.0, last - began)


def _last_request_at(upstream: Simulator) -> float:
    """When the upstream was sent its last request, as far as that was seen."""
    received, last = -1, time.perf_counter()
    while time.perf_counter() - last < QUIET_S:
        now = upstream.counters()["received"]
        if now != received:
            received, last = now, time.perf_counter()
        time.sleep(0.01)
    return last


def results_page(world: World) -> Iterator[Row]:
    """A page of a hundred results at nine tenths of a large batch, against its first page."""
    n = world.count(1_000_000)
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        settings = load_settings(home=home, base_url=world.base_url)
        with Batchline(settings) as client:
            file = client.files.create(file=world.file(n))
            batch = client.batches.create(input_file_id=file.id, via=None)
            ended = client.batches.run(batch.id)
            if ended.request_counts.completed != n:
                raise RuntimeError(f"{ended.request_counts.completed} of {n} requests succeeded")
            pages = {
                skip: [_page_s(client, batch.id, skip) for _ in range(2 * ROUNDS)] for skip in (0, n * 9 // 10)
            }
    for skip, taken in pages.items():
        world.samples.setdefault("results_page", {})[str(skip)] = [{"seconds": each} for each in taken]
    first, deep = (statistics.median(taken) for taken in pages.values())
    yield Row(f"results, 100 of {n:,} from the first on", 1e3 * first, unit=" ms")
    yield Row(f"results, 100 of {n:,} at nine tenths", 1e3 * deep, unit=" ms")
    yield Row("results, a page at nine tenths / the first", deep / first, most=2.0)


def _page_s(client: Batchline, batch_id: str, skip: int) -> float:
    began = time.perf_counter()
    items = list(client.batches.results(batch_id, skip=skip, limit=100))
    taken = time.perf_counter() - began
    if [item.custom_id for item in items] != [f"r-{number}" for number in range(skip, skip + 100)]:
        raise RuntimeError(f"the page at {skip} is a wrong one")
    return taken


def fairness(world: World) -> Iterator[Row]:
    """Seconds that 100 requests take alone, and beside a batch of 500,000 that was there first."""
    taken: dict[str, list[float]] = {"alone": [], "beside": []}
    with (
        tempfile.TemporaryDirectory(dir=world.home) as home,
        Simulator(SimulatorOptions(latency_s=0.1)) as upstream,
        Batchline(load_settings(home=home, base_url=upstream.base_url, lease_s=60)) as client,
    ):
        few, many = (client.files.create(file=world.file(count)) for count in (100, world.count(500_000)))
        taken["alone"] = [_few_s(client, few.id) for _ in range(ROUNDS)]
        large = client.batches.create(input_file_id=many.id)
        while client.batches.retrieve(large.id).request_counts.completed < 1_000:
            time.sleep(0.1)
        taken["beside"] = [_few_s(client, few.id) for _ in range(ROUNDS)]
        if client.batches.batch_if_ended(large.id) is not None:
            raise RuntimeError("the large batch was over before the small ones")
        client.batches.cancel(large.id)
        client.batches.wait(large.id)
    world.samples["fairness"] = {name: [{"seconds": each} for each in some] for name, some in taken.items()}
    alone, beside = (statistics.median(some) for some in taken.values())
    yield Row("100 requests beside 500,000, time / alone", beside / alone, most=5.0)


def _few_s(client: Batchline, file_id: str) -> float:
    began = time.perf_counter()
    batch = client.batches.create(input_file_id=file_id)
    ended = client.batches.wait(batch.id, poll_interval_s=0.02)
    if ended.request_counts.completed != 100:
        raise RuntimeError(f"{ended.request_counts.completed} of 100 requests succeeded")
    return time.perf_counter() - began


class CountingObjects(LocalObjectStore):
    """A local store that counts the bytes that are written to it; a copy is a link and writes none."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written_bytes = 0

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        with super().writer(key) as file:
            yield _Counting(file, self)

    def concat(self, keys: Sequence[str], target: str) -> int:
        size = super().concat(keys, target)
        self.written_bytes += size
        return size


class _Counting:
    def __init__(self, file: ObjectWriter, store: CountingObjects) -> None:
        self._file = file
        self._store = store

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._store.written_bytes += len(data)


def retry_of_few(world: World) -> Iterator[Row]:
    """A retry of the one in a hundred requests that failed: what it sends, and what it writes."""
    n = world.count(50_000)
    with (
        tempfile.TemporaryDirectory(dir=world.home) as home,
        Simulator(SimulatorOptions(server_error=0.01)) as upstream,
    ):
        settings = load_settings(home=home, base_url=upstream.base_url, max_attempts=1)
        store = CountingObjects(Path(home) / "storage")
        engine = Services(settings=settings, store=store, records=open_records(settings))
        with Batchline(services=engine) as client:
            file = client.files.create(file=world.file(n))
            batch = client.batches.create(input_file_id=file.id, via=None)
            began = time.perf_counter()
            failed = client.batches.run(batch.id).request_counts.failed
            first_s = time.perf_counter() - began
            sent, written, began = upstream.counters()["received"], store.written_bytes, time.perf_counter()
            client.batches.retry(batch.id, via=None)
            again = client.batches.run(batch.id)
            retry_s = time.perf_counter() - began
            sent, written = upstream.counters()["received"] - sent, store.written_bytes - written
            if again.request_counts.completed + again.request_counts.failed != n:
                raise RuntimeError("the counts do not add up")
        size = sum(path.stat().st_size for path in Path(home, "storage", "batches", batch.id).glob("*.*"))
    world.samples.setdefault("retry_of_few", {})["retry"] = [
        {"failed": failed, "sent": sent, "written_bytes": written, "files_bytes": size, "first_s": first_s}
        | {"retry_s": retry_s}
    ]
    yield Row(f"retry of {failed:,} of {n:,}: requests sent beyond those", abs(sent - failed), most=0)
    yield Row(f"retry of {failed:,} of {n:,}: bytes written / the batch's files", written / size, most=1.1)
    yield Row(f"retry of {failed:,} of {n:,}: wall time / the whole batch's", retry_s / first_s)

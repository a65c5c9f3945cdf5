"""Runs a batch in this process without Prefect, with its chunks on threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from batchline.engine.lease import BatchLease, acquire_lease
from batchline.engine.lifecycle import (
    check_all_finished,
    finalize,
    finish,
    measure,
    pending_chunks,
    read_finished_parts,
    write,
)
from batchline.engine.recovery import validate_or_recover
from batchline.engine.services import Services
from batchline.models.plan import MAX_OPEN_CHUNKS
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.send_chunk import ChunkResult, ChunkSpec, send_chunk
from batchline.storage.records.store import BatchRecord


def run_local(services: Services, batch_id: str) -> BatchRecord:
    """Run or resume the batch to its end and return its record; raises the errors of the steps."""
    batch = services.records.get_batch(batch_id)
    if batch.status in TERMINAL_STATUSES:
        return batch
    with acquire_lease(services, batch_id) as lease:
        return run_pipeline(lease, send_all=lambda specs: _send_on_threads(lease, specs))


def _send_on_threads(lease: BatchLease, specs: Sequence[ChunkSpec]) -> list[ChunkResult]:
    """Send several chunks at a time; the first failure interrupts the others and is raised at the end."""
    failure: BaseException | None = None
    results = []
    with ThreadPoolExecutor(max_workers=MAX_OPEN_CHUNKS, thread_name_prefix="chunk") as pool:
        for future in as_completed([pool.submit(send_chunk, spec, lease) for spec in specs]):
            error = future.exception()
            if error is None:
                results.append(future.result())
            else:
                failure = failure or error
                lease.interrupt(str(failure))
    if failure is not None:
        raise failure
    return results


def run_pipeline(
    lease: BatchLease, *, send_all: Callable[[Sequence[ChunkSpec]], Sequence[ChunkResult]]
) -> BatchRecord:
    """Run a leased batch to its end; `send_all` sends all chunks and returns their results."""
    plan = validate_or_recover(lease)
    if plan is None:
        return lease.batch
    results = send_all(pending_chunks(lease, plan))
    check_all_finished(lease, plan, results)
    finalize(lease)
    parts = read_finished_parts(lease, plan)
    analytics, report = measure(lease, parts)
    manifest = write(lease, parts, report)
    return finish(lease, manifest, analytics, report)

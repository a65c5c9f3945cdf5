"""Runs a batch from its input to its end: the order of the steps.

The steps are plain functions by default; a flow passes in Prefect tasks that call the same functions.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from batchline.engine.finish import finish
from batchline.engine.lease import BatchLease, acquire_lease
from batchline.engine.recovery import validate_or_recover
from batchline.engine.services import Services
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.errors import BatchPaused, Interrupted, StorageFault
from batchline.models.manifest import Manifest
from batchline.models.plan import MAX_OPEN_CHUNKS, Plan
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.aggregate import aggregate as aggregate_step
from batchline.steps.parts import Part, find_finished_keys, read_part
from batchline.steps.send_chunk import ChunkResult, ChunkSpec, send_chunk
from batchline.steps.transitions import finalize
from batchline.steps.write import read_manifest
from batchline.steps.write import write as write_step
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord


def run_local(services: Services, batch_id: str) -> BatchRecord:
    """Run or resume the batch without Prefect, with its chunks on threads, and return its record at its end.

    Raises the errors of the steps, and `BatchPaused`.
    """

    def run_once() -> BatchRecord:
        batch = services.records.get_batch(batch_id)
        if batch.status in TERMINAL_STATUSES:
            return batch
        with acquire_lease(services, batch_id) as lease:
            return run(lease, send_all=lambda specs: _send_on_threads(lease, specs))

    return run_until_paused(services, run_once)


def run_until_paused(services: Services, run_once: Callable[[], BatchRecord]) -> BatchRecord:
    """Call `run_once`, again if the pause that stopped it has ended meanwhile; raises `BatchPaused` otherwise.

    A batch that is resumed or cancelled while its last requests are being awaited still has this runner.
    """
    while True:
        try:
            return run_once()
        except BatchPaused as paused:
            if services.records.get_batch(paused.batch_id).pause is not None:
                raise


def run(
    lease: BatchLease,
    *,
    send_all: Callable[[Sequence[ChunkSpec]], Sequence[ChunkResult]],
    validate: Callable[[BatchLease], Plan | None] = validate_or_recover,
    aggregate: Callable[[BatchLease, Sequence[Part]], tuple[BatchAnalytics, BatchReport]] = aggregate_step,
    write: Callable[[BatchLease, Sequence[Part], BatchReport], Manifest] = write_step,
    on_start: Callable[[Plan], object] | None = None,
) -> BatchRecord:
    """Run a leased batch to its end and return its record; `send_all` sends all chunks and returns their results.

    `on_start` is called before chunks are sent. Raises the errors of the steps, `Interrupted` if sending was
    stopped, and `BatchPaused` if the batch was paused before all requests were settled.
    """
    plan = validate(lease)
    if plan is None:
        return lease.batch
    lease.raise_if_paused()
    if on_start is not None:
        on_start(plan)
    _check_all_finished(lease, plan, send_all(pending_chunks(lease, plan)))
    finalize(lease)
    parts = _read_finished_parts(lease, plan)
    analytics, report = aggregate(lease, parts)
    manifest = write(lease, parts, report)
    return finish(lease, manifest, analytics, report)


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


def pending_chunks(lease: BatchLease, plan: Plan) -> list[ChunkSpec]:
    """Return a spec for each chunk without a finished part, and count the requests that are settled already."""
    batch = lease.batch
    if batch.final_prefix is not None:
        base_manifest = read_manifest(lease.store, batch.final_prefix)
        # The base counts the requests that this generation sends again as completed or failed.
        lease.add_previous_counts(
            base_manifest.completed - plan.completed,
            base_manifest.failed - (plan.total - plan.completed) - batch.unanswered,
        )
    finished = find_finished_keys(lease.store, batch.id, batch.generation)
    for key in finished.values():
        part = read_part(lease.store, key)
        lease.add_previous_counts(part.completed, part.failed - part.unanswered)
    segments = lease.store.list_objects(layout.segments_prefix(batch.id, batch.generation))
    started = {layout.parse_segment(info.key).chunk for info in segments}
    model = plan.models[0] if len(plan.models) == 1 else None
    return [
        ChunkSpec(
            batch_id=batch.id,
            generation=batch.generation,
            epoch=lease.claim.epoch,
            endpoint=batch.endpoint,
            input_key=plan.input_key,
            input_bytes=plan.size_bytes,
            model=model,
            chunk=chunk,
            is_fresh=chunk.index not in started,
        )
        for chunk in plan.chunks
        if chunk.index not in finished
    ]


def _check_all_finished(lease: BatchLease, plan: Plan, results: Sequence[ChunkResult]) -> None:
    """Raise `LeaseLost`, `BatchPaused` or `Interrupted` unless every chunk is finished."""
    lease.raise_if_lost()
    lease.record_limit()
    open_chunks = [result.chunk for result in results if not result.is_finished]
    if open_chunks:
        lease.raise_if_paused()
        stopped = lease.session.stop_reason
        raise Interrupted(
            f"batch {lease.batch.id} stopped with {len(open_chunks)} of {len(plan.chunks)} chunks unfinished: "
            f"{stopped.message if stopped else 'interrupted'}; answers are saved"
        )


def _read_finished_parts(lease: BatchLease, plan: Plan) -> list[Part]:
    """Return every chunk's part in input order; raises `StorageFault` if one is missing."""
    keys = find_finished_keys(lease.store, lease.batch.id, lease.batch.generation)
    missing = [chunk.index for chunk in plan.chunks if chunk.index not in keys]
    if missing:
        raise StorageFault(
            f"batch {lease.batch.id}: parts of chunks {missing[:5]} are missing from storage; run it again with "
            f"`batchline run --resume {lease.batch.id}`"
        )
    return [read_part(lease.store, keys[chunk.index]) for chunk in plan.chunks]

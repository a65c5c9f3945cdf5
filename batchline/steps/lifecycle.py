"""A batch's way from `validating` to its end: what happens between the steps, and what the records say of it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.batches import BatchError
from batchline.models.errors import Conflict, Interrupted, LeaseLost, StorageFault
from batchline.models.failures import ErrorCode
from batchline.models.ids import new_file_id
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL, BatchStatus, ending, timestamp_field
from batchline.steps.aggregate import aggregate
from batchline.steps.chunk import ChunkOrder, ChunkResult
from batchline.steps.hold import BatchHold
from batchline.steps.merge import merged
from batchline.steps.parts import Part, finished_keys, part_of
from batchline.steps.plans import read_plan, store_plan
from batchline.steps.report.page import write_page
from batchline.steps.sweep import KEPT_S, sweep_due
from batchline.steps.validate import Validation, validate_input
from batchline.steps.write import Manifest, publish, read_manifest, write_files
from batchline.storage import layout
from batchline.storage.records import BatchRecord, Doomed, FileChanges, FileRecord

log = logging.getLogger(__name__)

TURN_S = 0.5
"""Between looks whether a batch that waits to be checked is to stop."""

VALIDATION_BLOCK_BYTES = 2**20


def validate_batch(hold: BatchHold) -> Plan | None:
    """Check the input file and cut it into chunks, or take the plan that an earlier run left.

    None means that the batch is over: its input does not validate, or it was cancelled or expired meanwhile.
    """
    if hold.batch.status in TERMINAL:
        return None
    if hold.batch.in_progress_at is not None:
        return read_plan(hold.store, hold.batch)
    if _ended_early(hold):
        return None
    try:
        found = _validation(hold)
    except Interrupted:
        if _ended_early(hold):
            return None
        raise
    if _ended_early(hold):
        return None
    if found.plan is None:
        fail_validation(hold, found.errors)
        return None
    plan = store_plan(hold.store, found.plan)
    return plan if begin(hold, plan) else None


def _ended_early(hold: BatchHold) -> bool:
    """End the batch before it has begun, if it was cancelled or its window has closed; whether it has ended."""
    stopped, deadline = hold.run.stopped, hold.run.deadline
    if stopped is not None and stopped.code is ErrorCode.BATCH_CANCELLED:
        _leave_validating(hold, BatchStatus.CANCELLED)
        return True
    if deadline is not None and time.time() >= deadline:
        _leave_validating(hold, BatchStatus.EXPIRED)
        return True
    return False


def _validation(hold: BatchHold) -> Validation:
    batch, settings = hold.batch, hold.engine.settings
    key = hold.records.get_file(batch.input_file_id).key
    while not hold.engine.checking.acquire(timeout=TURN_S):
        _check_stopped(hold)
    try:
        return validate_input(
            lambda: _until_stopped(hold, key),
            batch_id=batch.id,
            input_key=key,
            endpoint=batch.endpoint,
            settings=settings,
            max_errors=settings.max_reported_errors,
        )
    finally:
        hold.engine.checking.release()


def _until_stopped(hold: BatchHold, key: str) -> Iterator[bytes]:
    """The input's blocks; raises `LeaseLost` or `Interrupted` once the run is to stop."""
    for block in hold.store.stream(key, block_bytes=VALIDATION_BLOCK_BYTES):
        _check_stopped(hold)
        yield block


def _check_stopped(hold: BatchHold) -> None:
    stopped = hold.run.stopped
    if stopped is not None:
        hold.check()
        raise Interrupted(f"batch {hold.batch.id} stopped while its input was checked: {stopped.message}")


def fail_validation(hold: BatchHold, errors: Sequence[BatchError]) -> None:
    """End the batch as `failed` with those errors; nothing was sent."""
    _leave_validating(hold, BatchStatus.FAILED, errors=tuple(errors), total=0, completed=0, failed=0)


def begin(hold: BatchHold, plan: Plan) -> bool:
    """Make the batch `in_progress`, with the ids that its output and error files will have.

    False where it was cancelled in the last moment, and is.
    """
    batch = hold.batch
    output, errors = new_output_file(batch, now=_now()), new_error_file(batch, now=_now())
    return _leave_validating(
        hold,
        BatchStatus.IN_PROGRESS,
        file_changes=FileChanges(added=(output, errors)),
        total=plan.total,
        model=(plan.models[0] or None) if len(plan.models) == 1 else None,
        output_file_id=output.id,
        error_file_id=errors.id,
    )


def _leave_validating(
    hold: BatchHold, target: BatchStatus, *, file_changes: FileChanges | None = None, **fields: object
) -> bool:
    """Bring the batch to that state; false where a cancel came first, which is then what became of it."""
    try:
        hold.batch = hold.records.move(
            hold.batch.id, target, now=_now(), lease=hold.lease, file_changes=file_changes, **fields
        )
    except Conflict:
        if hold.records.get_batch(hold.batch.id).status is not BatchStatus.CANCELLING:
            raise
        hold.batch = hold.records.move(hold.batch.id, BatchStatus.CANCELLED, now=_now(), lease=hold.lease)
        return False
    return True


def new_output_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """The record of a batch's output file before there is anything in it."""
    return _new_file(batch, layout.output_key(batch.id), now)


def new_error_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """The record of a batch's error file before there is anything in it."""
    return _new_file(batch, layout.errors_key(batch.id), now)


def _new_file(batch: BatchRecord, key: str, now: int) -> FileRecord:
    expires_after = batch.output_expires_after
    return FileRecord(
        id=new_file_id(),
        purpose="batch_output",
        filename=f"{batch.id}_{key.rpartition('/')[2]}",
        size_bytes=0,
        created_at=now,
        expires_at=None if expires_after is None else now + expires_after,
        key=key,
        status="uploaded",
        member_id=batch.member_id,
    )


def orders(hold: BatchHold, plan: Plan) -> list[ChunkOrder]:
    """What is left to send: an order for each chunk that has no finished part."""
    batch = hold.batch
    if batch.final_prefix is not None:
        base = read_manifest(hold.store, batch.final_prefix)
        hold.settled_before(base.completed, base.failed - plan.total - batch.unanswered)
    done = finished_keys(hold.store, batch.id, batch.generation)
    for key in done.values():
        part = part_of(hold.store, key)
        hold.settled_before(part.completed, part.failed - part.unanswered)
    left = hold.store.find(layout.segments_prefix(batch.id, batch.generation))
    begun = {layout.parse_segment(info.key).chunk for info in left}
    model = plan.models[0] if len(plan.models) == 1 else None
    return [
        ChunkOrder(
            batch_id=batch.id,
            generation=batch.generation,
            epoch=hold.lease.epoch,
            endpoint=batch.endpoint,
            input_key=plan.input_key,
            input_bytes=plan.size_bytes,
            model=model,
            chunk=chunk,
            fresh=chunk.index not in begun,
        )
        for chunk in plan.chunks
        if chunk.index not in done
    ]


def check_settled(hold: BatchHold, plan: Plan, results: Sequence[ChunkResult]) -> None:
    """Raise `LeaseLost` or `Interrupted` unless every chunk is finished."""
    hold.check()
    open_chunks = [result.chunk for result in results if not result.finished]
    if open_chunks:
        stopped = hold.run.stopped
        raise Interrupted(
            f"batch {hold.batch.id} stopped with {len(open_chunks)} of {len(plan.chunks)} chunks unfinished: "
            f"{stopped.message if stopped else 'interrupted'}; what was answered is saved"
        )


def finished_parts(hold: BatchHold, plan: Plan) -> list[Part]:
    """Every chunk's part in input order; raises `StorageFault` where one is missing."""
    keys = finished_keys(hold.store, hold.batch.id, hold.batch.generation)
    missing = [chunk.index for chunk in plan.chunks if chunk.index not in keys]
    if missing:
        raise StorageFault(
            f"batch {hold.batch.id}: parts of chunks {missing[:5]} are missing from storage; run it again with "
            f"`batchline run --resume {hold.batch.id}`"
        )
    return [part_of(hold.store, keys[chunk.index]) for chunk in plan.chunks]


def settle(hold: BatchHold) -> None:
    """Make the batch `finalizing`, with its counts of now (a batch that is being cancelled stays `cancelling`)."""
    completed, failed = hold.counts()
    try:
        hold.batch = hold.records.move(
            hold.batch.id,
            BatchStatus.FINALIZING,
            now=_now(),
            lease=hold.lease,
            completed=completed,
            failed=failed,
        )
    except LeaseLost:
        raise
    except Conflict:
        hold.batch = hold.records.get_batch(hold.batch.id)
        if hold.batch.status not in {BatchStatus.FINALIZING, BatchStatus.CANCELLING}:
            raise


def measure(hold: BatchHold, parts: Sequence[Part]) -> tuple[BatchAnalytics, BatchReport]:
    """Aggregate all of the batch's requests, those of earlier generations included."""
    rows = merged(hold.store, parts, hold.batch.final_prefix)
    return aggregate((some.table for some in rows), prices=hold.engine.settings.prices)


def write(hold: BatchHold, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """Write the batch's files; a retry's take the place of those before when the batch is finished."""
    store, batch = hold.store, hold.batch
    hold.check()
    if batch.generation == 0:
        prefix = layout.batch_prefix(batch.id)
    else:
        prefix = layout.final_prefix(batch.id, batch.generation, f"e{hold.lease.epoch}")
    manifest = write_files(
        store,
        batch.id,
        batch.generation,
        parts,
        prefix=prefix,
        base=batch.final_prefix,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    publish_files(hold, manifest, report)
    return manifest


def publish_files(hold: BatchHold, manifest: Manifest, report: BatchReport) -> None:
    """Put the files where outsiders look for them, and the report's figures beside them."""
    batch_id = hold.batch.id
    if manifest.prefix != layout.batch_prefix(batch_id):
        hold.check()
        publish(hold.store, batch_id, manifest.prefix)
    hold.store.put(layout.report_data_key(batch_id), report.model_dump_json().encode())


def finish(hold: BatchHold, manifest: Manifest, analytics: BatchAnalytics, report: BatchReport) -> BatchRecord:
    """Bring the batch to its end, drop the ids of empty files, and return its record."""
    batch = hold.records.get_batch(hold.batch.id)
    target = ending(
        completed=manifest.completed,
        expired=manifest.expired > 0,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    now, fields = _now(), _ended_fields(hold, batch, target, manifest, analytics, report)
    ended = msgspec.structs.replace(batch, status=target, **{str(timestamp_field(target)): now}, **fields)
    _write_page(hold, ended, manifest, report)
    hold.batch = hold.records.move(
        batch.id,
        target,
        now=now,
        lease=hold.lease,
        file_changes=_closing(batch, manifest, now=now),
        **fields,
    )
    sweep_due(hold.engine)
    return hold.batch


def _ended_fields(
    hold: BatchHold,
    batch: BatchRecord,
    target: BatchStatus,
    manifest: Manifest,
    analytics: BatchAnalytics,
    report: BatchReport,
) -> dict[str, Any]:
    """What changes in the batch's record when it ends, beside its state."""
    return {
        "completed": manifest.completed,
        "failed": manifest.failed - manifest.unanswered,
        "unanswered": manifest.unanswered,
        "output_file_id": batch.output_file_id if manifest.output_bytes else None,
        "error_file_id": batch.error_file_id if manifest.errors_bytes else None,
        "final_prefix": manifest.prefix,
        "generation": manifest.generation,
        "analytics": analytics,
        "errors": _ending_errors(hold, target, report),
    }


def _write_page(hold: BatchHold, ended: BatchRecord, manifest: Manifest, report: BatchReport) -> None:
    """Write the report as a page, of the batch as it is about to be; it ends without one where that fails."""
    hold.check()
    try:
        write_page(hold.store, ended, report, manifest)
    except Exception as error:  # noqa: BLE001 - no fault of the page's may keep a batch from its end
        log.warning("batch %s has no report page: %s: %s", ended.id, type(error).__name__, error)
        with suppress(StorageFault):  # an earlier generation's tells of another end
            hold.store.delete([layout.report_page_key(ended.id)])


def _closing(batch: BatchRecord, manifest: Manifest, *, now: int) -> FileChanges:
    """Changes of file records when their batch ends: an empty file's is dropped, the others get their content.

    Their time to live counts from `now`: before, there was nothing in them to be read to its end.
    """
    keys, changed, dropped = layout.final_keys(manifest.prefix), {}, []
    lives_s = batch.output_expires_after
    until = {} if lives_s is None else {"expires_at": now + lives_s}
    for file_id, key, size in (
        (batch.output_file_id, keys.output, manifest.output_bytes),
        (batch.error_file_id, keys.errors, manifest.errors_bytes),
    ):
        if file_id is not None and size:
            changed[file_id] = {"key": key, "size_bytes": size, "status": "processed", **until}
        elif file_id is not None:
            dropped.append(file_id)
    return FileChanges(changed=changed, dropped=tuple(dropped), doomed=_needless(batch, manifest))


def _needless(batch: BatchRecord, manifest: Manifest) -> tuple[Doomed, ...]:
    """The parts and whatever else other runners left of this generation, and the files of the one before."""
    due_at = _now() + KEPT_S
    generations = range(min(batch.generation, manifest.generation), manifest.generation + 1)
    made_of = [layout.generation_prefix(batch.id, generation) for generation in generations]
    if manifest.base is None:
        return tuple(Doomed(prefix=prefix, due_at=due_at) for prefix in made_of)
    parts = [Doomed(prefix=prefix, kept=manifest.prefix, due_at=due_at) for prefix in made_of]
    return (*parts, Doomed(prefix=manifest.base, due_at=due_at))


def _ending_errors(hold: BatchHold, target: BatchStatus, report: BatchReport) -> tuple[BatchError, ...] | None:
    if target is not BatchStatus.FAILED:
        return None
    stopped = hold.run.stopped
    if stopped is not None and stopped.code is ErrorCode.BATCH_FAILED:
        return (BatchError(code=stopped.code, message=stopped.message),)
    reasons = ", ".join(f"{code} {count}" for code, count in report.failures.items())
    return (
        BatchError(
            code="all_requests_failed",
            message=f"every request failed ({reasons}); the error file has each one",
        ),
    )


def _now() -> int:
    return int(time.time())

"""A batch's way from `validating` to its end: what happens between the steps, and what the records say of it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from batchline.analytics.totals import compute_analytics
from batchline.engine.deletion import DELETION_DELAY_S, delete_due
from batchline.engine.lease import BatchLease
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.batches import BatchError
from batchline.models.error_codes import ErrorCode
from batchline.models.errors import Conflict, Interrupted, LeaseLost, StorageFault
from batchline.models.ids import new_file_id
from batchline.models.manifest import Manifest
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL_STATUSES, BatchStatus, final_status, timestamp_field
from batchline.report.page import write_page
from batchline.steps.check_input import Validation, check_input
from batchline.steps.merge import merge_rows
from batchline.steps.parts import Part, find_finished_keys, read_part
from batchline.steps.plans import read_plan, store_plan
from batchline.steps.send_chunk import ChunkResult, ChunkSpec
from batchline.steps.write import publish_copies, read_manifest, write_files
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord, FileChanges, FileRecord, PendingDeletion

log = logging.getLogger(__name__)

VALIDATION_POLL_INTERVAL_S = 0.5
"""Between looks whether a batch that waits to be checked is to stop."""

VALIDATION_BLOCK_BYTES = 2**20


def validate_batch(lease: BatchLease) -> Plan | None:
    """Check the input file and cut it into chunks, or take the plan that an earlier run left.

    None means that the batch is over: its input does not validate, or it was cancelled or expired meanwhile.
    """
    if lease.batch.status in TERMINAL_STATUSES:
        return None
    if lease.batch.in_progress_at is not None:
        return read_plan(lease.store, lease.batch)
    if _finish_if_ended(lease):
        return None
    try:
        validation = _validate_when_free(lease)
    except Interrupted:
        if _finish_if_ended(lease):
            return None
        raise
    if _finish_if_ended(lease):
        return None
    if validation.plan is None:
        fail_validation(lease, validation.errors)
        return None
    plan = store_plan(lease.store, validation.plan)
    return plan if start_sending(lease, plan) else None


def _finish_if_ended(lease: BatchLease) -> bool:
    """End the batch before it has begun, if it was cancelled or its window has closed; whether it has ended."""
    stopped, deadline = lease.session.stop_reason, lease.session.deadline
    if stopped is not None and stopped.code is ErrorCode.BATCH_CANCELLED:
        _move_from_validating(lease, BatchStatus.CANCELLED)
        return True
    if deadline is not None and time.time() >= deadline:
        _move_from_validating(lease, BatchStatus.EXPIRED)
        return True
    return False


def _validate_when_free(lease: BatchLease) -> Validation:
    batch, settings = lease.batch, lease.services.settings
    key = lease.records.get_file(batch.input_file_id).key
    while not lease.services.validation_slots.acquire(timeout=VALIDATION_POLL_INTERVAL_S):
        _raise_if_stopped(lease)
    try:
        return check_input(
            lambda: _input_blocks_until_stopped(lease, key),
            batch_id=batch.id,
            input_key=key,
            endpoint=batch.endpoint,
            settings=settings,
            max_errors=settings.max_reported_errors,
        )
    finally:
        lease.services.validation_slots.release()


def _input_blocks_until_stopped(lease: BatchLease, key: str) -> Iterator[bytes]:
    """The input's blocks; raises `LeaseLost` or `Interrupted` once the run is to stop."""
    for block in lease.store.stream(key, block_bytes=VALIDATION_BLOCK_BYTES):
        _raise_if_stopped(lease)
        yield block


def _raise_if_stopped(lease: BatchLease) -> None:
    stopped = lease.session.stop_reason
    if stopped is not None:
        lease.raise_if_lost()
        raise Interrupted(f"batch {lease.batch.id} stopped while its input was checked: {stopped.message}")


def fail_validation(lease: BatchLease, errors: Sequence[BatchError]) -> None:
    """End the batch as `failed` with those errors; nothing was sent."""
    _move_from_validating(lease, BatchStatus.FAILED, errors=tuple(errors), total=0, completed=0, failed=0)


def start_sending(lease: BatchLease, plan: Plan) -> bool:
    """Make the batch `in_progress`, with the ids that its output and error files will have.

    False where it was cancelled in the last moment, and is.
    """
    batch = lease.batch
    output_file, error_file = new_output_file(batch, now=_now()), new_error_file(batch, now=_now())
    return _move_from_validating(
        lease,
        BatchStatus.IN_PROGRESS,
        file_changes=FileChanges(added=(output_file, error_file)),
        total=plan.total,
        model=(plan.models[0] or None) if len(plan.models) == 1 else None,
        output_file_id=output_file.id,
        error_file_id=error_file.id,
    )


def _move_from_validating(
    lease: BatchLease, target: BatchStatus, *, file_changes: FileChanges | None = None, **fields: object
) -> bool:
    """Bring the batch to that state; false where a cancel came first, which is then what became of it."""
    try:
        lease.batch = lease.records.change_status(
            lease.batch.id, target, now=_now(), lease=lease.claim, file_changes=file_changes, **fields
        )
    except Conflict:
        if lease.records.get_batch(lease.batch.id).status is not BatchStatus.CANCELLING:
            raise
        lease.batch = lease.records.change_status(
            lease.batch.id, BatchStatus.CANCELLED, now=_now(), lease=lease.claim
        )
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


def pending_chunks(lease: BatchLease, plan: Plan) -> list[ChunkSpec]:
    """What is left to send: an order for each chunk that has no finished part."""
    batch = lease.batch
    if batch.final_prefix is not None:
        base_manifest = read_manifest(lease.store, batch.final_prefix)
        lease.add_previous_counts(base_manifest.completed, base_manifest.failed - plan.total - batch.unanswered)
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


def check_all_finished(lease: BatchLease, plan: Plan, results: Sequence[ChunkResult]) -> None:
    """Raise `LeaseLost` or `Interrupted` unless every chunk is finished."""
    lease.raise_if_lost()
    open_chunks = [result.chunk for result in results if not result.is_finished]
    if open_chunks:
        stopped = lease.session.stop_reason
        raise Interrupted(
            f"batch {lease.batch.id} stopped with {len(open_chunks)} of {len(plan.chunks)} chunks unfinished: "
            f"{stopped.message if stopped else 'interrupted'}; what was answered is saved"
        )


def read_finished_parts(lease: BatchLease, plan: Plan) -> list[Part]:
    """Every chunk's part in input order; raises `StorageFault` where one is missing."""
    keys = find_finished_keys(lease.store, lease.batch.id, lease.batch.generation)
    missing = [chunk.index for chunk in plan.chunks if chunk.index not in keys]
    if missing:
        raise StorageFault(
            f"batch {lease.batch.id}: parts of chunks {missing[:5]} are missing from storage; run it again with "
            f"`batchline run --resume {lease.batch.id}`"
        )
    return [read_part(lease.store, keys[chunk.index]) for chunk in plan.chunks]


def finalize(lease: BatchLease) -> None:
    """Make the batch `finalizing`, with its counts of now (a batch that is being cancelled stays `cancelling`)."""
    completed, failed = lease.counts()
    try:
        lease.batch = lease.records.change_status(
            lease.batch.id,
            BatchStatus.FINALIZING,
            now=_now(),
            lease=lease.claim,
            completed=completed,
            failed=failed,
        )
    except LeaseLost:
        raise
    except Conflict:
        lease.batch = lease.records.get_batch(lease.batch.id)
        if lease.batch.status not in {BatchStatus.FINALIZING, BatchStatus.CANCELLING}:
            raise


def measure(lease: BatchLease, parts: Sequence[Part]) -> tuple[BatchAnalytics, BatchReport]:
    """Aggregate all of the batch's requests, those of earlier generations included."""
    row_blocks = merge_rows(lease.store, parts, lease.batch.final_prefix)
    return compute_analytics((block.table for block in row_blocks), prices=lease.services.settings.prices)


def write(lease: BatchLease, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """Write the batch's files; a retry's take the place of those before when the batch is finished."""
    store, batch = lease.store, lease.batch
    lease.raise_if_lost()
    if batch.generation == 0:
        prefix = layout.batch_prefix(batch.id)
    else:
        prefix = layout.final_prefix(batch.id, batch.generation, f"e{lease.claim.epoch}")
    manifest = write_files(
        store,
        batch.id,
        batch.generation,
        parts,
        prefix=prefix,
        base=batch.final_prefix,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    publish_files(lease, manifest, report)
    return manifest


def publish_files(lease: BatchLease, manifest: Manifest, report: BatchReport) -> None:
    """Put the files where outsiders look for them, and the report's figures beside them."""
    batch_id = lease.batch.id
    if manifest.prefix != layout.batch_prefix(batch_id):
        lease.raise_if_lost()
        publish_copies(lease.store, batch_id, manifest.prefix)
    lease.store.put(layout.report_data_key(batch_id), report.model_dump_json().encode())


def finish(lease: BatchLease, manifest: Manifest, analytics: BatchAnalytics, report: BatchReport) -> BatchRecord:
    """Bring the batch to its end, drop the ids of empty files, and return its record."""
    batch = lease.records.get_batch(lease.batch.id)
    target = final_status(
        completed=manifest.completed,
        expired=manifest.expired > 0,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    now, fields = _now(), _ended_fields(lease, batch, target, manifest, analytics, report)
    ended_batch = msgspec.structs.replace(batch, status=target, **{str(timestamp_field(target)): now}, **fields)
    _write_report_page(lease, ended_batch, manifest, report)
    lease.batch = lease.records.change_status(
        batch.id,
        target,
        now=now,
        lease=lease.claim,
        file_changes=_close_files(batch, manifest, now=now),
        **fields,
    )
    delete_due(lease.services)
    return lease.batch


def _ended_fields(
    lease: BatchLease,
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
        "errors": _final_errors(lease, target, report),
    }


def _write_report_page(
    lease: BatchLease, ended_batch: BatchRecord, manifest: Manifest, report: BatchReport
) -> None:
    """Write the report as a page, of the batch as it is about to be; it ends without one where that fails."""
    lease.raise_if_lost()
    try:
        write_page(lease.store, ended_batch, report, manifest)
    except Exception as error:  # noqa: BLE001 - no fault of the page's may keep a batch from its end
        log.warning("batch %s has no report page: %s: %s", ended_batch.id, type(error).__name__, error)
        with suppress(StorageFault):  # an earlier generation's tells of another end
            lease.store.delete([layout.report_page_key(ended_batch.id)])


def _close_files(batch: BatchRecord, manifest: Manifest, *, now: int) -> FileChanges:
    """Changes of file records when their batch ends: an empty file's is dropped, the others get their content.

    Their time to live counts from `now`: before, there was nothing in them to be read to its end.
    """
    keys, changed, dropped = layout.final_keys(manifest.prefix), {}, []
    lifetime_s = batch.output_expires_after
    expiry = {} if lifetime_s is None else {"expires_at": now + lifetime_s}
    for file_id, key, size in (
        (batch.output_file_id, keys.output, manifest.output_bytes),
        (batch.error_file_id, keys.errors, manifest.errors_bytes),
    ):
        if file_id is not None and size:
            changed[file_id] = {"key": key, "size_bytes": size, "status": "processed", **expiry}
        elif file_id is not None:
            dropped.append(file_id)
    return FileChanges(
        changed=changed, deleted=tuple(dropped), scheduled_deletions=_obsolete_objects(batch, manifest)
    )


def _obsolete_objects(batch: BatchRecord, manifest: Manifest) -> tuple[PendingDeletion, ...]:
    """The parts and whatever else other runners left of this generation, and the files of the one before."""
    due_at = _now() + DELETION_DELAY_S
    generations = range(min(batch.generation, manifest.generation), manifest.generation + 1)
    generation_prefixes = [layout.generation_prefix(batch.id, generation) for generation in generations]
    if manifest.base is None:
        return tuple(PendingDeletion(prefix=prefix, due_at=due_at) for prefix in generation_prefixes)
    parts = [PendingDeletion(prefix=prefix, kept=manifest.prefix, due_at=due_at) for prefix in generation_prefixes]
    return (*parts, PendingDeletion(prefix=manifest.base, due_at=due_at))


def _final_errors(lease: BatchLease, target: BatchStatus, report: BatchReport) -> tuple[BatchError, ...] | None:
    if target is not BatchStatus.FAILED:
        return None
    stopped = lease.session.stop_reason
    if stopped is not None and stopped.code is ErrorCode.BATCH_FAILED:
        return (BatchError(code=stopped.code, message=stopped.message),)
    counts_by_code = ", ".join(f"{code} {count}" for code, count in report.failures.items())
    return (
        BatchError(
            code="all_requests_failed",
            message=f"every request failed ({counts_by_code}); the error file has each one",
        ),
    )


def _now() -> int:
    return int(time.time())

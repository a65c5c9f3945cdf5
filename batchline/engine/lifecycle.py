"""Moves a batch from `validating` to its end: the work between the steps, and the changes of its record."""

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
"""Seconds between checks whether a batch that waits for validation should stop."""

VALIDATION_BLOCK_BYTES = 2**20


def validate_batch(lease: BatchLease) -> Plan | None:
    """Validate the input and split it into chunks, or read the stored plan; return None if the batch is over."""
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
    """End a batch that was cancelled, or whose window closed, before it started; return True if it has ended."""
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
    """Yield the input's blocks; raises `LeaseLost` or `Interrupted` when the session is stopped."""
    for block in lease.store.stream(key, block_bytes=VALIDATION_BLOCK_BYTES):
        _raise_if_stopped(lease)
        yield block


def _raise_if_stopped(lease: BatchLease) -> None:
    stopped = lease.session.stop_reason
    if stopped is not None:
        lease.raise_if_lost()
        raise Interrupted(f"batch {lease.batch.id} stopped while its input was checked: {stopped.message}")


def fail_validation(lease: BatchLease, errors: Sequence[BatchError]) -> None:
    """End the batch as `failed` with the validation errors; nothing was sent."""
    _move_from_validating(lease, BatchStatus.FAILED, errors=tuple(errors), total=0, completed=0, failed=0)


def start_sending(lease: BatchLease, plan: Plan) -> bool:
    """Make the batch `in_progress`; return False if it was cancelled meanwhile, and is now `cancelled`."""
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
    """Change the status; return False if a cancel came first, in which case the batch is now `cancelled`."""
    try:
        lease.batch = lease.records.change_status(
            lease.batch.id, target, now=_now(), lease=lease.claim, file_changes=file_changes, **fields
        )
    except Conflict:
        if lease.records.get_batch(lease.batch.id).status is not BatchStatus.CANCELLING:
            raise
        # Nothing was sent yet, so the cancel takes effect at once.
        lease.batch = lease.records.change_status(
            lease.batch.id, BatchStatus.CANCELLED, now=_now(), lease=lease.claim
        )
        return False
    return True


def new_output_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """Build the record of a batch's output file, still empty."""
    return _new_file(batch, layout.output_key(batch.id), now)


def new_error_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """Build the record of a batch's error file, still empty."""
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
    """Return a spec for each chunk without a finished part, and count the requests that are settled already."""
    batch = lease.batch
    if batch.final_prefix is not None:
        base_manifest = read_manifest(lease.store, batch.final_prefix)
        # The base counts the requests that this generation sends again as failed.
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
    """Return every chunk's part in input order; raises `StorageFault` if one is missing."""
    keys = find_finished_keys(lease.store, lease.batch.id, lease.batch.generation)
    missing = [chunk.index for chunk in plan.chunks if chunk.index not in keys]
    if missing:
        raise StorageFault(
            f"batch {lease.batch.id}: parts of chunks {missing[:5]} are missing from storage; run it again with "
            f"`batchline run --resume {lease.batch.id}`"
        )
    return [read_part(lease.store, keys[chunk.index]) for chunk in plan.chunks]


def finalize(lease: BatchLease) -> None:
    """Make the batch `finalizing` with its current counts; one that is being cancelled stays `cancelling`."""
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
    except LeaseLost:  # a kind of `Conflict`
        raise
    except Conflict:
        lease.batch = lease.records.get_batch(lease.batch.id)
        if lease.batch.status not in {BatchStatus.FINALIZING, BatchStatus.CANCELLING}:
            raise


def measure(lease: BatchLease, parts: Sequence[Part]) -> tuple[BatchAnalytics, BatchReport]:
    """Compute analytics and report over all of the batch's requests, earlier generations included."""
    row_blocks = merge_rows(lease.store, parts, lease.batch.final_prefix)
    return compute_analytics((block.table for block in row_blocks), prices=lease.services.settings.prices)


def write(lease: BatchLease, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """Write the batch's files; those of a retry replace the earlier ones when the batch is finished."""
    store, batch = lease.store, lease.batch
    lease.raise_if_lost()
    if batch.generation == 0:
        prefix = layout.batch_prefix(batch.id)
    else:
        # The epoch keeps a runner that lost its lease from overwriting the files of its successor.
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
    """Copy the files to their public keys, and store the report's data with them."""
    batch_id = lease.batch.id
    if manifest.prefix != layout.batch_prefix(batch_id):
        lease.raise_if_lost()
        publish_copies(lease.store, batch_id, manifest.prefix)
    lease.store.put(layout.report_data_key(batch_id), report.model_dump_json().encode())


def finish(lease: BatchLease, manifest: Manifest, analytics: BatchAnalytics, report: BatchReport) -> BatchRecord:
    """End the batch, remove the records of empty files, and return its record."""
    batch = lease.records.get_batch(lease.batch.id)  # it may have been cancelled since the lease read it
    target = final_status(
        completed=manifest.completed,
        expired=manifest.expired > 0,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    now, fields = _now(), _ended_fields(lease, batch, target, manifest, analytics, report)
    ended_batch = msgspec.structs.replace(batch, status=target, **{str(timestamp_field(target)): now}, **fields)
    # Before the status, so that the page exists once the batch is seen to have ended.
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
    """Return the fields of the batch's record that change when it ends, besides its status."""
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
    """Write the report page for the batch in its final state; an error is logged and the batch ends without it."""
    lease.raise_if_lost()
    try:
        write_page(lease.store, ended_batch, report, manifest)
    except Exception as error:  # noqa: BLE001 - a defect of the page must not prevent a batch from ending
        log.warning("batch %s has no report page: %s: %s", ended_batch.id, type(error).__name__, error)
        with suppress(StorageFault):  # a page from an earlier generation would describe a different outcome
            lease.store.delete([layout.report_page_key(ended_batch.id)])


def _close_files(batch: BatchRecord, manifest: Manifest, *, now: int) -> FileChanges:
    """Return the changes of the file records when their batch ends: empty files are removed, others completed."""
    keys, changed, dropped = layout.final_keys(manifest.prefix), {}, []
    # The time to live counts from now, as the files had no content to download before.
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
    """Schedule deletion of this generation's parts, leftovers of other runners, and the files that it replaces."""
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

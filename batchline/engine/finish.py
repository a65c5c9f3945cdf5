"""Ends a batch whose files are written: its record, its file records, its report page, and what to delete."""

import logging
import time
from contextlib import suppress

import msgspec

from batchline.engine.deletion import DELETION_DELAY_S, delete_now
from batchline.engine.lease import BatchLease
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.batches import BatchError
from batchline.models.errors import StorageFault
from batchline.models.manifest import Manifest
from batchline.models.status import BatchStatus, final_status, timestamp_field
from batchline.report.page import write_page
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord, FileChanges, PendingDeletion

log = logging.getLogger(__name__)

MAX_DELETIONS_PER_BATCH = 20
"""Prefixes that the end of one batch deletes at most; those of other batches must not delay it for long."""


def finish(lease: BatchLease, manifest: Manifest, analytics: BatchAnalytics, report: BatchReport) -> BatchRecord:
    """End the batch, remove the records of empty files, and return its record."""
    batch, now = lease.records.get_batch(lease.batch.id), int(time.time())  # a cancel may have changed the record
    target = final_status(
        completed=manifest.completed,
        expired=manifest.expired > 0,
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    fields = {
        "completed": manifest.completed,
        "failed": manifest.failed - manifest.unanswered,
        "unanswered": manifest.unanswered,
        "output_file_id": batch.output_file_id if manifest.output_bytes else None,
        "error_file_id": batch.error_file_id if manifest.errors_bytes else None,
        "final_prefix": manifest.prefix,
        "generation": manifest.generation,
        "analytics": analytics,
        "errors": _final_errors(report) if target is BatchStatus.FAILED else batch.errors,
    }
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
    delete_now(lease.services, "batches/", limit=MAX_DELETIONS_PER_BATCH)
    return lease.batch


def _final_errors(report: BatchReport) -> tuple[BatchError, ...]:
    """Return the error of a batch of which every request failed."""
    counts_by_code = ", ".join(f"{code} {count}" for code, count in report.failures.items())
    message = f"every request failed ({counts_by_code}); the error file lists each one"
    return (BatchError(code="all_requests_failed", message=message),)


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
    """Return the changes of the file records when their batch ends, and the deletion of objects that are obsolete.

    Empty files are removed. Obsolete are this generation's parts, leftovers of other runners, and replaced files.
    """
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
    kept, due_at = None if manifest.base is None else manifest.prefix, now + DELETION_DELAY_S
    deletions = [
        PendingDeletion(prefix=layout.generation_prefix(batch.id, generation), kept=kept, due_at=due_at)
        for generation in range(min(batch.generation, manifest.generation), manifest.generation + 1)
    ]
    if manifest.base is not None:
        deletions.append(PendingDeletion(prefix=manifest.base, due_at=due_at))
    return FileChanges(changed=changed, deleted=tuple(dropped), scheduled_deletions=tuple(deletions))

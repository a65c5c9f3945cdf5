"""Ends a batch whose files are complete on storage although its record does not say so.

The record can be older than the storage after a restore from a backup, a failover, or a commit lost in a power
failure. The responses were paid for, so the files are checked before anything is sent.
"""

import logging
import time
from contextlib import suppress

from batchline.analytics.totals import compute_analytics
from batchline.engine.lease import BatchLease
from batchline.engine.lifecycle import finalize, finish, publish_files, start_sending, validate_batch
from batchline.models.errors import Conflict
from batchline.models.manifest import Manifest
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.steps.merge import merge_rows
from batchline.steps.plans import read_first_plan
from batchline.steps.write import find_finished_manifest

log = logging.getLogger(__name__)


def validate_or_recover(lease: BatchLease) -> Plan | None:
    """Return the plan of the requests to send, or None if the batch is over or was just ended with its files."""
    batch = lease.batch
    if batch.status in TERMINAL_STATUSES:
        return None
    manifest = find_finished_manifest(lease.store, batch.id, generation=batch.generation)
    if manifest is None:
        return validate_batch(lease)
    _finish_from_files(lease, manifest)
    return None


def _finish_from_files(lease: BatchLease, manifest: Manifest) -> None:
    batch = lease.batch
    log.warning(
        "batch %s is %s in the records, which are older than its finished files on storage; ending it with these",
        batch.id,
        batch.status,
    )
    # The record may be from before validation; it gets its files and total as at the first time.
    if batch.in_progress_at is None and not start_sending(lease, read_first_plan(lease.store, batch.id)):
        return
    lease.add_previous_counts(manifest.completed, manifest.failed - manifest.unanswered)
    if manifest.cancelled:
        with suppress(Conflict):  # it is already `finalizing` or `cancelling`
            lease.batch = lease.records.change_status(
                batch.id, BatchStatus.CANCELLING, now=int(time.time()), lease=lease.claim
            )
    finalize(lease)
    analytics, report = compute_analytics(
        (block.table for block in merge_rows(lease.store, (), manifest.prefix)),
        prices=lease.services.settings.prices,
    )
    publish_files(lease, manifest, report)
    finish(lease, manifest, analytics, report)

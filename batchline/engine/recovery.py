"""Ends a batch whose files are complete on storage although its record does not say so.

The record can be older than the storage after a restore from a backup, a failover, or a commit lost in a power
failure. The responses were paid for, so the files are checked before anything is sent.
"""

import logging

from batchline.engine.finish import finish
from batchline.engine.lease import BatchLease
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.aggregate import aggregate
from batchline.steps.plans import read_first_plan
from batchline.steps.transitions import cancel_sending, finalize, start_sending
from batchline.steps.validate import validate
from batchline.steps.write import find_finished_manifest, publish_files

log = logging.getLogger(__name__)


def validate_or_recover(lease: BatchLease) -> Plan | None:
    """Return the plan of the requests to send, or None if the batch is over or was just ended with its files."""
    return None if recover(lease) else validate(lease)


def recover(lease: BatchLease) -> bool:
    """End the batch with its finished files and return True; return False if it has none or is over already."""
    batch = lease.batch
    if batch.status in TERMINAL_STATUSES:
        return False
    manifest = find_finished_manifest(lease.store, batch.id, generation=batch.generation)
    if manifest is None:
        return False
    log.warning(
        "batch %s is %s in the records, which are older than its finished files on storage; ending it with them",
        batch.id,
        batch.status,
    )
    # The record may be from before validation; it gets its files and total as at the first time.
    if batch.in_progress_at is None and not start_sending(lease, read_first_plan(lease.store, batch.id)):
        return True
    lease.add_previous_counts(manifest.completed, manifest.failed - manifest.unanswered)
    if manifest.cancelled:
        cancel_sending(lease)
    finalize(lease)
    analytics, report = aggregate(lease, (), base=manifest.prefix)
    publish_files(lease, manifest, report)
    finish(lease, manifest, analytics, report)
    return True

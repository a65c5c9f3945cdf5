"""Ends a batch whose files are finished on storage although its record does not say so.

A record is older than the storage after a backup was put back, a standby took over, or a commit was lost with the
power. The answers were paid for, so the files are looked for before anything is sent.
"""

import logging
import time
from contextlib import suppress

from batchline.models.errors import Conflict
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL, BatchStatus
from batchline.steps.aggregate import aggregate
from batchline.steps.hold import BatchHold
from batchline.steps.lifecycle import begin, finish, publish_files, settle, validate_batch
from batchline.steps.merge import merged
from batchline.steps.plans import whole_plan
from batchline.steps.write import Manifest, finished_manifest

log = logging.getLogger(__name__)


def validate_or_recover(hold: BatchHold) -> Plan | None:
    """Return the plan of what is to be sent, or None if the batch is over, as `validate_batch` does.

    A batch with finished files of its generation, or a later one, is ended with them, and nothing is sent.
    """
    batch = hold.batch
    if batch.status in TERMINAL:
        return None
    manifest = finished_manifest(hold.store, batch.id, generation=batch.generation)
    if manifest is None:
        return validate_batch(hold)
    _end_with(hold, manifest)
    return None


def _end_with(hold: BatchHold, manifest: Manifest) -> None:
    batch = hold.batch
    log.warning(
        "batch %s is %s in the records, which are older than its finished files on storage; ending it with these",
        batch.id,
        batch.status,
    )
    if batch.in_progress_at is None and not begin(hold, whole_plan(hold.store, batch.id)):
        return
    hold.settled_before(manifest.completed, manifest.failed - manifest.unanswered)
    if manifest.cancelled:
        with suppress(Conflict):  # it is `finalizing`, or `cancelling` already
            hold.batch = hold.records.move(
                batch.id, BatchStatus.CANCELLING, now=int(time.time()), lease=hold.lease
            )
    settle(hold)
    analytics, report = aggregate(
        (some.table for some in merged(hold.store, (), manifest.prefix)), prices=hold.engine.settings.prices
    )
    publish_files(hold, manifest, report)
    finish(hold, manifest, analytics, report)

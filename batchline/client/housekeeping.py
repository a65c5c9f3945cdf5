"""Clean up after elapsed deadlines and dead processes: delete what is due and resume orphaned batches.

Every job is idempotent and safe to run concurrently. Batches held by a live runner are not touched.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final, Literal

import msgspec

from batchline.client.batches import Via
from batchline.client.client import Batchline
from batchline.engine.deletion import delete_objects, find_objects
from batchline.models.errors import BatchlineError, Conflict, Interrupted, NotFound
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord

log = logging.getLogger(__name__)

STALE_UPLOAD_S: Final = 86_400.0
"""Seconds after which an incomplete upload counts as abandoned."""

ANNOUNCE_TIMEOUT_S: Final = 120.0
"""Seconds that a run may take to announce the end of its batch."""

MaintenanceKind = Literal[
    "resume", "cancel", "pause", "announce", "free_slots", "delete_file", "delete_objects", "discard_unfinished"
]


class MaintenanceItem(msgspec.Struct, frozen=True, kw_only=True):
    """A job: its subject (an id or a key) and the reason. `error` is set if it failed."""

    kind: MaintenanceKind
    subject: str
    reason: str
    size_bytes: int = 0
    done: bool = False
    error: str | None = None

    @property
    def name(self) -> str:
        """The kind, in words."""
        return self.kind.replace("_", " ")

    @property
    def state(self) -> Literal["failed", "done", "to do"]:
        """The job's state, in words."""
        return "failed" if self.error else "done" if self.done else "to do"


Job = tuple[MaintenanceItem, Callable[[], object]]


def run_housekeeping(
    client: Batchline, *, apply: bool = False, resume: bool = True, via: Via = "process"
) -> Iterator[MaintenanceItem]:
    """Find the jobs that are due, perform them if `apply`, and yield each as it is found or done.

    A failed job is yielded with its error, and the others continue. Orphaned batches run one after another in this
    process, or are started `via` deployment; if `resume` is false they are only reported.
    """
    jobs = chain(
        _find_expired_files(client),
        _find_pending_deletions(client),
        _find_stale_uploads(client),
        _find_orphaned_batches(client, via),
        _find_unannounced_ends(client),
        _find_leaked_slots(client),
    )
    for item, perform in jobs:
        if not apply or (item.kind in {"resume", "cancel", "pause"} and not resume):
            yield item
            continue
        try:
            perform()
        except (BatchlineError, OSError) as error:
            log.warning("%s of %s failed: %s", item.kind, item.subject, error)
            yield msgspec.structs.replace(item, error=str(error))
        else:
            yield msgspec.structs.replace(item, done=True)


def _job(
    kind: MaintenanceKind, subject: str, reason: str, perform: Callable[[], object], *, size_bytes: int = 0
) -> Job:
    return MaintenanceItem(kind=kind, subject=subject, reason=reason, size_bytes=size_bytes), perform


def _find_expired_files(client: Batchline) -> Iterator[Job]:
    def delete(file_id: str) -> None:
        with suppress(NotFound):
            client.files.delete(file_id)

    now = int(time.time())
    for file in client.services.records.expired_files(now=now):
        reason = f"{file.filename} expired {now - (file.expires_at or now):,} s ago"
        yield _job("delete_file", file.id, reason, partial(delete, file.id), size_bytes=file.size_bytes)


def _find_pending_deletions(client: Batchline) -> Iterator[Job]:
    """Yield objects left by deletions, uploads and ended batches."""
    services = client.services
    for deletion in services.records.due_deletions(now=time.time()):
        objects = find_objects(services.store, deletion)
        perform, size_bytes = partial(delete_objects, services, deletion), sum(info.size_bytes for info in objects)
        reason = f"{len(objects):,} objects are no longer needed"
        yield _job("delete_objects", deletion.prefix, reason, perform, size_bytes=size_bytes)


def _find_stale_uploads(client: Batchline) -> Iterator[Job]:
    store = client.services.store
    for name in store.incomplete_uploads(older_than_s=STALE_UPLOAD_S):
        yield _job("discard_unfinished", name, "its writer died", partial(store.abort_upload, name))


def _find_orphaned_batches(client: Batchline, via: Via) -> Iterator[Job]:
    settings, now = client.settings, client.services.records.now()
    for batch in client.batches.records(status="in_progress", limit=100):
        if not batch.is_leased(now=now, lease_s=settings.lease_s):
            yield from _find_due_work(client, batch, via, now)
    for batch in client.batches.records(status="cancelled", limit=100):
        if batch.status is BatchStatus.CANCELLING and not batch.is_leased(now=now, lease_s=settings.lease_s):
            reason = "it was cancelled and its files are not written"
            yield _job("resume", batch.id, reason, partial(_resume_batch, client, batch.id, via))


def _find_due_work(client: Batchline, batch: BatchRecord, via: Via, now: float) -> Iterator[Job]:
    """Yield what is due for a batch that no process holds: nothing if it waits, or was stopped on purpose."""
    reason = _resume_reason(batch, now, is_waiting=client.services.is_waiting(batch))
    if batch.last_flow_run_id is None:
        if reason is not None:
            yield _job("resume", batch.id, reason, partial(_resume_batch, client, batch.id, via))
        return
    from batchline.orchestration import run_needed  # noqa: PLC0415 - loads Prefect

    try:
        recorded = None if reason is None else run_needed.DueAction(reason)
        due_work = (
            run_needed.find_due_action(batch, reason, now=now) if run_needed.has_prefect_server() else recorded
        )
    except Interrupted as error:
        reason = reason or "the state of its flow run is unknown"
        yield _job("resume", batch.id, reason, partial(_raise_error, error))
        return
    if due_work is not None and due_work.pause:
        yield _job("pause", batch.id, due_work.reason, partial(_pause_batch, client, batch.id, due_work.reason))
    elif due_work is not None and due_work.cancel:
        yield _job("cancel", batch.id, due_work.reason, partial(_cancel_batch, client, batch.id, via))
    elif due_work is not None:
        resume = partial(_resume_batch, client, batch.id, via, after_crash=due_work.after_crash)
        yield _job("resume", batch.id, due_work.reason, resume)


def _find_unannounced_ends(client: Batchline) -> Iterator[Job]:
    """Yield batches whose run died after their end was stored and before it was announced."""
    batches = client.services.records.list_unannounced(ended_before=int(time.time() - ANNOUNCE_TIMEOUT_S))
    if not batches:
        return
    from batchline.orchestration import end_announcement, run_needed  # noqa: PLC0415 - needs Prefect

    if run_needed.has_prefect_server():
        for batch in batches:
            perform = partial(end_announcement.announce_missed_end, client.services, batch.id)
            yield _job("announce", batch.id, f"its run ended before it announced {batch.status}", perform)


def _find_leaked_slots(client: Batchline) -> Iterator[Job]:
    """Yield the upstreams' Prefect limits whose slots are not held by any live process."""
    # Importing Prefect takes seconds: a process that has not loaded it shares no quota.
    if not client.settings.share_budgets or "prefect" not in sys.modules:
        return
    from batchline.orchestration import leaked_slots, run_needed  # noqa: PLC0415 - needs Prefect

    if not run_needed.has_prefect_server():
        return
    try:
        for limit in leaked_slots.find_leaked_slots():
            reason = f"{limit.slots:,} slots are taken, and no process has used the upstream lately"
            yield _job("free_slots", limit.name, reason, partial(leaked_slots.release_leaked_slots, limit))
    except Interrupted as error:
        log.warning("slots of upstreams were not checked: %s", error)


def _raise_error(error: Exception) -> None:
    raise error


def _resume_reason(batch: BatchRecord, now: float, *, is_waiting: bool) -> str | None:
    """Return the reason to resume that the batch's own record gives, or None if it gives none."""
    if batch.pause is not None:
        return None if is_waiting else "it was paused for too long"
    if batch.lease_owner is not None:
        return f"its runner ({batch.lease_owner}) died"
    if batch.status is BatchStatus.FINALIZING:
        return "its files are not written"
    return "its completion window has closed" if batch.expires_at < now else None


def _resume_batch(client: Batchline, batch_id: str, via: Via, *, after_crash: bool = False) -> None:
    try:
        if via == "process":
            client.batches.run(batch_id)
        elif after_crash:
            from batchline.orchestration.deployments import start_deployment_run  # noqa: PLC0415 - loads Prefect

            start_deployment_run(client.services, batch_id, after_crash=True)
        else:
            client.batches.resume(batch_id, via=via)
    except Conflict:  # another process has claimed it meanwhile
        return


def _pause_batch(client: Batchline, batch_id: str, reason: str) -> None:
    with suppress(Conflict):  # its requests were settled meanwhile
        client.batches.pause(batch_id, message=reason)


def _cancel_batch(client: Batchline, batch_id: str, via: Via) -> None:
    if client.batches.cancel(batch_id).status is BatchStatus.CANCELLING:
        _resume_batch(client, batch_id, via)

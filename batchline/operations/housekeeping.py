"""Sets right what time and dead processes leave behind: what is due is deleted, what was left lying goes on.

Every chore is safe to do twice and by two at once. Nothing is done to what a living runner holds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Literal

import msgspec

from batchline.models.errors import BatchlineError, Conflict, Interrupted, NotFound
from batchline.models.status import BatchStatus
from batchline.operations.batches import Via
from batchline.operations.client import Batchline
from batchline.steps.sweep import objects_of, sweep
from batchline.storage.records import BatchRecord

log = logging.getLogger(__name__)

UNFINISHED_S: Final = 86_400.0
"""How long a writer may be at work on one object."""

ANNOUNCED_WITHIN_S: Final = 120.0
"""Seconds that a run may take to announce the end of its batch."""

Kind = Literal["resume", "cancel", "announce", "free_slots", "delete_file", "delete_objects", "discard_unfinished"]


class Chore(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be done: to what (an id, or a key), and why. `error` says why it could not be."""

    kind: Kind
    subject: str
    reason: str
    size_bytes: int = 0
    done: bool = False
    error: str | None = None

    @property
    def name(self) -> str:
        """The kind in words."""
        return self.kind.replace("_", " ")

    @property
    def state(self) -> Literal["failed", "done", "to do"]:
        """How far it has come, in words."""
        return "failed" if self.error else "done" if self.done else "to do"


Job = tuple[Chore, Callable[[], object]]


def housekeeping(
    client: Batchline, *, apply: bool = False, resume: bool = True, via: Via = "process"
) -> Iterator[Chore]:
    """Find what is to be done, do it where `apply` says so, and yield each chore as it is found or done.

    A chore that fails is reported with its error, and the others are done. Batches to go on with are run one
    after another in this process, or started `via` deployment; with `resume` false they are only named.
    """
    for chore, do in _jobs(client, via):
        if not apply or (chore.kind in {"resume", "cancel"} and not resume):
            yield chore
            continue
        try:
            do()
        except (BatchlineError, OSError) as error:
            log.warning("%s of %s failed: %s", chore.kind, chore.subject, error)
            yield msgspec.structs.replace(chore, error=str(error))
        else:
            yield msgspec.structs.replace(chore, done=True)


def _jobs(client: Batchline, via: Via) -> Iterator[Job]:
    yield from _expired_files(client)
    yield from _doomed_objects(client)
    yield from _unfinished_writes(client)
    yield from _abandoned_batches(client, via)
    yield from _unannounced_ends(client)
    yield from _leaked_slots(client)


def _expired_files(client: Batchline) -> Iterator[Job]:
    now = int(time.time())
    for file in client.engine.records.expired_files(now=now):
        ago = now - (file.expires_at or now)
        chore = Chore(
            kind="delete_file",
            subject=file.id,
            reason=f"{file.filename} expired {ago:,} s ago",
            size_bytes=file.size_bytes,
        )
        yield chore, partial(_delete_file, client, file.id)


def _delete_file(client: Batchline, file_id: str) -> None:
    try:
        client.files.delete(file_id)
    except NotFound:
        return


def _doomed_objects(client: Batchline) -> Iterator[Job]:
    """What deletions, uploads and ends of batches have left undone."""
    engine = client.engine
    for some in engine.records.doomed(now=time.time()):
        found = objects_of(engine.store, some)
        chore = Chore(
            kind="delete_objects",
            subject=some.prefix,
            reason=f"{len(found):,} objects are needed no more",
            size_bytes=sum(info.size_bytes for info in found),
        )
        yield chore, partial(sweep, engine, some)


def _unfinished_writes(client: Batchline) -> Iterator[Job]:
    store = client.engine.store
    for name in store.unfinished(older_than_s=UNFINISHED_S):
        chore = Chore(kind="discard_unfinished", subject=name, reason="its writer has died")
        yield chore, partial(store.discard, name)


def _abandoned_batches(client: Batchline, via: Via) -> Iterator[Job]:
    settings, now = client.engine.settings, client.engine.records.now()
    for batch in client.batches.records(status="in_progress", limit=100):
        if not batch.is_held(now=now, lease_s=settings.lease_s):
            yield from _what_is_due(client, batch, via, now)
    for batch in client.batches.records(status="cancelled", limit=100):
        if batch.status is BatchStatus.CANCELLING and not batch.is_held(now=now, lease_s=settings.lease_s):
            chore = Chore(kind="resume", subject=batch.id, reason="it was cancelled and its files are not written")
            yield chore, partial(_resume, client, batch.id, via)


def _what_is_due(client: Batchline, batch: BatchRecord, via: Via, now: float) -> Iterator[Job]:
    """Yield what is due for a batch that no process holds: nothing if it waits, or was stopped on purpose."""
    reason = _why_resume(batch, now)
    if batch.last_flow_run_id is None:
        if reason is not None:
            yield Chore(kind="resume", subject=batch.id, reason=reason), partial(_resume, client, batch.id, via)
        return
    from batchline.orchestration import due  # noqa: PLC0415 - loads Prefect

    try:
        known = None if reason is None else due.Due(reason)
        found = due.what_is_due(batch, reason, now=now) if due.is_configured() else known
    except Interrupted as error:
        failed = Chore(kind="resume", subject=batch.id, reason=reason or "its flow run's state is not known")
        yield failed, partial(_fail, error)
        return
    if found is not None and found.cancel:
        yield Chore(kind="cancel", subject=batch.id, reason=found.why), partial(_cancel, client, batch.id, via)
    elif found is not None:
        resume = partial(_resume, client, batch.id, via, after_crash=found.after_crash)
        yield Chore(kind="resume", subject=batch.id, reason=found.why), resume


def _unannounced_ends(client: Batchline) -> Iterator[Job]:
    """Yield the batches whose run died when they had ended, but before it could say so."""
    found = client.engine.records.unannounced(ended_before=int(time.time() - ANNOUNCED_WITHIN_S))
    if not found:
        return
    from batchline.orchestration import announcing, due  # noqa: PLC0415 - loads Prefect

    if due.is_configured():
        for batch in found:
            chore = Chore(kind="announce", subject=batch.id, reason=f"its run ended before it said {batch.status}")
            yield chore, partial(announcing.announce_late, client.engine, batch.id)


def _leaked_slots(client: Batchline) -> Iterator[Job]:
    """Yield the limits of upstreams in Prefect whose slots are taken by no process any more."""
    if not client.engine.settings.share_budgets or "prefect" not in sys.modules:
        return
    from batchline.orchestration import due, leaks  # noqa: PLC0415 - loaded already

    if not due.is_configured():
        return
    try:
        for limit in leaks.leaked():
            reason = f"{limit.slots:,} slots are taken, and no process has used the upstream lately"
            yield Chore(kind="free_slots", subject=limit.name, reason=reason), partial(leaks.free, limit)
    except Interrupted as error:
        log.warning("slots of upstreams were not checked: %s", error)


def _fail(error: Exception) -> None:
    raise error


def _why_resume(batch: BatchRecord, now: float) -> str | None:
    """Return why the batch is to continue, by its own record; None if that does not tell."""
    if batch.lease_owner is not None:
        return f"its runner ({batch.lease_owner}) died"
    if batch.status is BatchStatus.FINALIZING:
        return "its files are not written"
    return "its completion window has closed" if batch.expires_at < now else None


def _resume(client: Batchline, batch_id: str, via: Via, *, after_crash: bool = False) -> None:
    try:
        if via == "process":
            client.batches.run(batch_id)
        elif after_crash:
            from batchline.orchestration.deployments import start_as_deployment  # noqa: PLC0415 - loads Prefect

            start_as_deployment(client.engine, batch_id, after_crash=True)
        else:
            client.batches.resume(batch_id, via=via)
    except Conflict:  # somebody else has it by now
        return


def _cancel(client: Batchline, batch_id: str, via: Via) -> None:
    if client.batches.cancel(batch_id).status is BatchStatus.CANCELLING:
        _resume(client, batch_id, via)

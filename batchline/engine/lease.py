"""The lease of a batch, its heartbeat, and the sending session that depends on it.

The *runner* of a batch is the process that holds its lease. The heartbeat publishes the counts and reads cancel
requests; if it fails, sending stops before another runner can claim the batch. If other processes send chunks,
the heartbeat also reads their reports and publishes the reason to stop.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from batchline.engine.send_context import SenderBase
from batchline.engine.sender_reports import IDLE_PROGRESS, RemoteSenders, find_limit_stop
from batchline.engine.services import Services
from batchline.models.batches import BatchError, PauseCode
from batchline.models.error_codes import ErrorCode
from batchline.models.errors import BatchlineError, BatchPaused, Conflict, LeaseLost, NotFound, StorageFault
from batchline.models.status import BatchStatus
from batchline.steps.send_chunk import ChunkSpec
from batchline.steps.transitions import cancel_sending
from batchline.storage.records.lease_owners import new_lease_owner
from batchline.storage.records.senders import RUNNER_SENDER
from batchline.storage.records.store import BatchRecord, Lease
from batchline.upstream.session_progress import SessionProgress
from batchline.upstream.stop_reason import StopReason

log = logging.getLogger(__name__)

MAX_SAVING_S = 60.0
"""Seconds that a runner may take to save its results, in addition to its grace period and its lease."""

LEASE_POLL_INTERVAL_S = 0.5
"""Seconds between checks of the lease of a runner that may be dead."""


class BatchLease(SenderBase):
    """The lease of one batch, renewed by a thread, with the session that sends its requests."""

    no_upstream_message = "no upstream serves model {model!r}; add it to an upstream's models"

    def __init__(self, services: Services, batch: BatchRecord, claim: Lease, *, claimed_at: float) -> None:
        super().__init__(services, batch, sender_id=RUNNER_SENDER)
        self.claim = claim
        self.validation_slots = services.validation_slots
        self._remote_senders: RemoteSenders | None = None
        self._recorded_stop: StopReason | None = None
        self._previous_counts = [0, 0]
        self._started_chunks: set[int] = set()
        self._note_heartbeat(claimed_at)
        self._release_started = threading.Event()
        self._heartbeat_thread = threading.Thread(
            target=self._heartbeat_loop, name=f"heartbeat {batch.id}", daemon=True
        )

    def __enter__(self) -> Self:
        if self.batch.status is BatchStatus.CANCELLING:
            # Cancelled before this runner claimed it: the requests are settled as cancelled, none is sent.
            self.session.stop(CANCEL_STOP)
        elif self.batch.pause is not None and not self.services.is_waiting(self.batch):
            self.session.stop(PAUSE_EXPIRED_STOP)
        self._heartbeat_thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._release_started.set()
        # First, so that no heartbeat is sent with a lease that is already released.
        self._join_heartbeat(self._heartbeat_thread)
        is_interrupted = self.session.is_interrupted
        self.session.close()
        # A lost lease may belong to another runner by now.
        if self._lease_error is None:
            try:
                if is_interrupted:  # what was answered since the last heartbeat is counted too
                    completed, failed = self.counts()
                    self.records.heartbeat(self.claim, completed=completed, failed=failed)
                self.records.release(self.claim)
            except (StorageFault, LeaseLost) as fault:
                log.warning("the lease of %s was not released: %s; it expires by itself", self.batch.id, fault)

    def add_previous_counts(self, completed: int, failed: int) -> None:
        """Count requests that were settled before this session."""
        with self._counts_lock:
            self._previous_counts[0] += completed
            self._previous_counts[1] += failed

    def mark_chunk_started(self, chunk: int) -> bool:
        """Mark the chunk as started; return True the first time under this lease."""
        with self._counts_lock:
            is_first = chunk not in self._started_chunks
            self._started_chunks.add(chunk)
            return is_first

    def add_settled(self, chunk: int, completed: int, failed: int, *, is_recovered: bool = False) -> None:
        """Count requests that an earlier session settled; the session itself counts the others."""
        del chunk
        if is_recovered:
            self.add_previous_counts(completed, failed)

    def allow_remote_senders(self) -> None:
        """Exchange reports with other sender processes at each heartbeat from now on."""
        self._remote_senders = RemoteSenders()

    def exchange_reports(self) -> None:
        """Read the reports of the other senders; stop if one of them has reached a limit."""
        if self._remote_senders is not None:
            # The counts and the progress of this process are in the records already.
            _, reports = self._send_own_report(self.claim.epoch, chunks={}, progress=IDLE_PROGRESS)
            reports.pop(RUNNER_SENDER)
            self._remote_senders.update(reports)
            if (stop := find_limit_stop(reports.values())) is not None:
                self.session.stop(stop)

    def progress(self) -> SessionProgress:
        """Return the progress of all sender processes, without requests settled before this session."""
        own_progress = self.session.snapshot()
        return own_progress if self._remote_senders is None else self._remote_senders.merge_progress(own_progress)

    def counts(self) -> tuple[int, int]:
        """Return the requests completed and failed so far, earlier sessions included."""
        own = self.session.snapshot()
        remote_completed, remote_failed = (0, 0) if self._remote_senders is None else self._remote_senders.counts()
        with self._counts_lock:
            completed, failed = self._previous_counts
        return completed + own.completed + remote_completed, failed + own.failed + remote_failed

    def record_limit(self) -> None:
        """Store the pause of a batch that has reached a limit, or that it stops there, unless it is stored.

        Raises `LeaseLost` and `StorageFault`.
        """
        stopped = self.session.stop_reason
        # A person's pause came from the record, and may have ended there since.
        limit = None if stopped is None else stopped.limit
        if stopped is None or limit is None or limit == "by_user" or stopped is self._recorded_stop:
            return
        if stopped.is_pause:
            with suppress(Conflict):  # it was cancelled, or its last requests were settled
                self.records.pause(self.batch.id, code=limit, message=stopped.message)
        else:
            cancel_sending(self, BatchError(code=limit, message=stopped.message))
        self._recorded_stop = stopped

    def raise_if_paused(self) -> None:
        """Raise `BatchPaused` if the batch was paused, unless it ends because it was paused for too long."""
        self.record_limit()
        stopped = self.session.stop_reason
        if stopped is None or stopped.is_pause:
            batch = self.records.get_batch(self.batch.id)
            if batch.pause is not None or stopped is not None:
                raise paused_error(batch)

    def pause(self, message: str, *, code: PauseCode = "by_user") -> None:
        """Pause the batch; raises `Conflict` if its requests are settled, and `StorageFault`."""
        self.records.pause(self.batch.id, code=code, message=message)
        self.session.stop(PAUSE_STOP)

    def interrupt(self, reason: str) -> None:
        """Stop sending; unsettled requests are left to the next runner."""
        self.session.stop(StopReason(code=None, message=reason))

    def _heartbeat_loop(self) -> None:
        while not self._release_started.wait(self._heartbeat_interval_s):
            try:
                self._send_heartbeat()
            except LeaseLost as lost:
                return self._mark_lost(lost)
            except NotFound:
                return self._mark_lost(LeaseLost(f"batch {self.batch.id} was deleted while it ran"))
            except Exception as fault:  # without a heartbeat the run must end, whatever the reason
                # Only an unexpected error is worth a traceback.
                unexpected_error = None if isinstance(fault, BatchlineError) else fault
                log.warning("heartbeat of %s failed: %s", self.batch.id, fault, exc_info=unexpected_error)
                if time.monotonic() - self._last_heartbeat_at > self.settings.lease_s / 2:
                    return self._mark_lost(
                        LeaseLost(f"batch {self.batch.id}: no heartbeat for half a lease: {fault}")
                    )
        return None

    def _send_heartbeat(self) -> None:
        # Read before the write: the lease is valid for at least `lease_s` from this time.
        started_at = time.monotonic()
        with self._track_heartbeat():
            self.exchange_reports()
            completed, failed = self.counts()
            batch = self.records.heartbeat(self.claim, completed=completed, failed=failed)
        self._note_heartbeat(started_at)
        self.record_limit()
        if batch.status is BatchStatus.CANCELLING:
            self.session.stop(CANCEL_STOP)
        elif batch.status is BatchStatus.IN_PROGRESS and batch.paused_at is not None:
            self.session.stop(PAUSE_STOP)

    def _note_heartbeat(self, at: float) -> None:
        """Record a heartbeat and let the session send for half a lease, counted from before it was written."""
        self._last_heartbeat_at = at
        # Less the time since `at`, in which the process may have been suspended. The other half of the lease is
        # the time to stop in.
        self.session.renew(at + self.settings.lease_s / 2 - time.monotonic())


def paused_error(batch: BatchRecord) -> BatchPaused:
    """Return the error that stops the run of a paused batch; the batch may have been resumed since."""
    pause = batch.pause
    message = f"batch {batch.id} is paused: {pause.message}" if pause else f"batch {batch.id} was paused"
    return BatchPaused(message, batch_id=batch.id, code=pause.code if pause else "by_user")


PAUSE_STOP = StopReason(code=None, message="the batch is paused", limit="by_user")
PAUSE_EXPIRED_STOP = StopReason(
    code=ErrorCode.BATCH_EXPIRED, message="the batch was paused for too long before this request was settled"
)
CANCEL_STOP = StopReason(
    code=ErrorCode.BATCH_CANCELLED, message="the batch was cancelled before this request was settled"
)


_active_leases: dict[tuple[str, int], BatchLease] = {}
_active_leases_lock = threading.Lock()


def wait_for_lease(
    services: Services, batch: BatchRecord, notify: Callable[[str], object], *, is_stopping: bool = False
) -> None:
    """Wait until the lease of a dead runner expires; raises `Conflict` if that runner sends a heartbeat.

    If the runner `is_stopping`, it may send heartbeats until its requests in flight are answered and saved.
    """
    settings, first_heartbeat_at, has_notified = services.settings, batch.lease_at, False
    max_wait_s = settings.grace_s + settings.lease_s + MAX_SAVING_S if is_stopping else 0.0
    give_up_at = time.monotonic() + max_wait_s
    while batch.lease_owner is not None and batch.lease_at is not None:
        # The database's clock, as the clocks of two hosts may differ by more than a lease.
        remaining_s = batch.lease_at + settings.lease_s - services.records.now()
        if remaining_s < 0 or services.records.has_runner_died(batch):
            return
        if batch.lease_at != first_heartbeat_at and time.monotonic() >= give_up_at:
            raise Conflict(
                f"batch {batch.id} is being run by another process ({batch.lease_owner}), which is alive"
            )
        if not has_notified:
            notify(f"another process holds this batch; waiting {max(remaining_s, max_wait_s):.0f} s at most")
            has_notified = True
        time.sleep(LEASE_POLL_INTERVAL_S)
        batch = services.records.get_batch(batch.id)


@contextmanager
def acquire_lease(services: Services, batch_id: str) -> Iterator[BatchLease]:
    """Claim the batch's lease and renew it until the block ends; raises `Conflict` while another runner has it."""
    claimed_at = time.monotonic()
    claim = services.records.claim(batch_id, owner=new_lease_owner(), lease_s=services.settings.lease_s)
    try:
        lease = BatchLease(services, services.records.get_batch(batch_id), claim, claimed_at=claimed_at)
    except BaseException:
        services.records.release(claim)
        raise
    key = batch_id, claim.epoch
    with lease:
        with _active_leases_lock:
            _active_leases[key] = lease
        try:
            yield lease
        finally:
            with _active_leases_lock:
                del _active_leases[key]


def lease_for(spec: ChunkSpec) -> BatchLease | None:
    """Return this process's lease for a chunk, or None if another process has it or a later epoch replaced it."""
    with _active_leases_lock:
        return _active_leases.get((spec.batch_id, spec.epoch))


def active_lease(batch_id: str) -> BatchLease | None:
    """Return this process's lease on the batch, or None if it does not run here."""
    with _active_leases_lock:
        return next((lease for (leased_id, _), lease in _active_leases.items() if leased_id == batch_id), None)

"""Sends chunks of a batch whose lease another process holds, until that lease expires.

The runner and the other senders communicate through the records: each reports about once a second its counts
and whether it was stopped, and reads the reports of the others.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from batchline.engine.lease import CANCEL_STOP, PAUSE_STOP
from batchline.engine.send_context import SenderBase
from batchline.engine.sender_reports import SenderReport, as_idle, find_limit_stop
from batchline.engine.services import Services
from batchline.models.errors import BatchlineError, InvalidInput, LeaseLost, NotFound
from batchline.models.status import BatchStatus
from batchline.steps.send_chunk import ChunkSpec
from batchline.storage.records.senders import RUNNER_SENDER
from batchline.storage.records.store import BatchRecord

log = logging.getLogger(__name__)


class RemoteSender(SenderBase):
    """A sender without the batch's lease, shared by all chunks of the batch in this process."""

    no_upstream_message = "no upstream of this process serves model {model!r}; give all the same settings"

    def __init__(self, services: Services, batch: BatchRecord, epoch: int) -> None:
        super().__init__(services, batch, sender_id=uuid.uuid4().hex[:8])
        self.use_count = 0
        self._epoch = epoch
        self._chunk_counts: dict[int, tuple[int, int]] = {}
        self._runner_alive_at = float("-inf")
        self._exchange_lock = threading.Lock()
        self._closed = threading.Event()
        self.session.renew(0.0)
        self._report_thread = threading.Thread(target=self._report_loop, name=f"joined {batch.id}", daemon=True)

    def start(self) -> None:
        """Send the first report and start the reporting thread; raises `LeaseLost` or `StorageFault`."""
        self._exchange_reports()
        self._report_thread.start()

    def close(self) -> None:
        """Stop the reporting thread and close the session; calls in flight are dropped."""
        self._closed.set()
        self._join_heartbeat(self._report_thread)
        self.session.close()

    def send_report(self) -> None:
        """Send a report now; an error other than `LeaseLost` is logged, and the next report catches up."""
        try:
            with self._exchange_lock, self._track_heartbeat():
                self._exchange_reports()
        except LeaseLost as lost:
            self._mark_lost(lost)
        except Exception as fault:  # the thread that reports must outlive it
            unexpected_error = None if isinstance(fault, BatchlineError) else fault
            log.warning("report on batch %s failed: %s", self.batch.id, fault, exc_info=unexpected_error)

    def mark_chunk_started(self, chunk: int) -> bool:
        """Return False: another process may have started the chunk before."""
        del chunk
        return False

    def add_settled(self, chunk: int, completed: int, failed: int, *, is_recovered: bool = False) -> None:
        """Count settled requests of the chunk, recovered or not."""
        del is_recovered
        with self._counts_lock:
            previous = self._chunk_counts.get(chunk, (0, 0))
            self._chunk_counts[chunk] = previous[0] + completed, previous[1] + failed

    def reset_chunk(self, chunk: int) -> None:
        """Set the counts of the chunk to zero."""
        with self._counts_lock:
            self._chunk_counts.pop(chunk, None)

    def _report_loop(self) -> None:
        while not self._closed.wait(self._heartbeat_interval_s):
            self.send_report()
            if self._lease_error is None and time.monotonic() - self._runner_alive_at > self.settings.lease_s:
                self._mark_lost(
                    LeaseLost(f"batch {self.batch.id}: its runner has stopped responding; another will take over")
                )

    def _exchange_reports(self) -> None:
        progress = self.session.snapshot()
        if self._closed.is_set():
            # The last report: its requests in flight were dropped.
            progress = as_idle(progress)
        with self._counts_lock:
            chunks = dict(self._chunk_counts)
        started_at = time.monotonic()
        lease, reports = self._send_own_report(self._epoch, chunks=chunks, progress=progress)
        # Send for half a lease from the runner's last heartbeat. Its age was true when the database answered;
        # counting from before the query errs on the safe side.
        self._runner_alive_at = max(self._runner_alive_at, started_at - max(0.0, lease.age_s))
        self.session.renew(self._runner_alive_at + self.settings.lease_s / 2 - time.monotonic())
        runner_report = reports.pop(RUNNER_SENDER, SenderReport())
        if lease.status is BatchStatus.CANCELLING:
            self.session.stop(CANCEL_STOP)
        elif lease.is_paused:
            self.session.stop(PAUSE_STOP)
        elif (stop := runner_report.stopped or find_limit_stop(reports.values())) is not None:
            self.session.stop(stop)


_active_senders: dict[tuple[Services, str, int], RemoteSender] = {}
_active_senders_lock = threading.Lock()


@contextmanager
def join_batch(services: Services, spec: ChunkSpec) -> Iterator[RemoteSender]:
    """Yield this process's sender for the batch while the chunk is sent; the first chunk creates it.

    Raises `LeaseLost` if the runner's epoch is over, `InvalidInput` if the records have no such batch, and
    `StorageFault`.
    """
    sender = _acquire_sender(services, spec)
    sender.reset_chunk(spec.chunk.index)
    try:
        yield sender
    finally:
        # Under the lock, so that no other chunk acquires a sender that is about to close.
        with _active_senders_lock:
            sender.use_count -= 1
            if is_last := not sender.use_count:
                del _active_senders[services, spec.batch_id, spec.epoch]
        if is_last:
            sender.close()
        sender.send_report()


def _acquire_sender(services: Services, spec: ChunkSpec) -> RemoteSender:
    key = services, spec.batch_id, spec.epoch
    with _active_senders_lock:
        sender = _active_senders.get(key)
        if sender is None:
            try:
                batch = services.records.get_batch(spec.batch_id)
            except NotFound:
                raise InvalidInput(
                    f"the records of this process ({services.settings.home}) have no batch {spec.batch_id}: give "
                    "all processes that send its chunks the same BATCHLINE_DATABASE_URL and BATCHLINE_STORAGE_URL"
                ) from None
            sender = RemoteSender(services, batch, spec.epoch)
            try:
                sender.start()
            except BaseException:
                sender.session.close()
                raise
            _active_senders[key] = sender
        sender.use_count += 1
        return sender

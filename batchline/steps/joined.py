"""A process's part in a batch whose lease another has: it sends chunks for as long as that one shows life.

The lease's process and those that send for it speak through the records: each reports once a second what it has
settled and whether it was stopped, and reads what the others said.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from batchline.models.errors import BatchlineError, InvalidInput, LeaseLost, NotFound
from batchline.models.status import BatchStatus
from batchline.steps.chunk import ChunkOrder
from batchline.steps.engine import Engine
from batchline.steps.figures import Figures
from batchline.steps.hold import CANCELLED
from batchline.steps.sending import Sending
from batchline.steps.shared import SenderReport, at_rest, encode_report, refusal, reports_of, settled
from batchline.storage.records import BatchRecord
from batchline.storage.senders import RUNNER, SharedLease

log = logging.getLogger(__name__)


class JoinedHold(Sending):
    """What sending chunks takes in a process that has not the batch's lease; used by several chunks at once."""

    without_upstream = "no upstream of this process serves model {model!r}; give all the same settings"

    def __init__(self, engine: Engine, batch: BatchRecord, epoch: int) -> None:
        super().__init__(engine, batch, sender=uuid.uuid4().hex[:8], requests=batch.total)
        self.users = 0
        self._epoch = epoch
        self._chunks: dict[int, tuple[int, int]] = {}
        self._alive_at = float("-inf")
        self._exchanging = threading.Lock()
        self._number = 0
        self._over = threading.Event()
        self.run.renew(0.0)
        self._thread = threading.Thread(target=self._keep, name=f"joined {batch.id}", daemon=True)

    def begin(self) -> None:
        """Look for the runner, and begin to report to it; raises `LeaseLost` where it is over, `StorageFault`."""
        self._exchange()
        self._thread.start()

    def close(self) -> None:
        """Take leave."""
        self._over.set()
        self._end_heartbeat(self._thread)
        self.run.close()

    def report(self) -> None:
        """Report what has been settled by now; a fault only delays that."""
        try:
            with self._exchanging, self._beating():
                self._exchange()
        except LeaseLost as lost:
            self._lose(lost)
        except Exception as fault:  # the thread that reports must outlive it
            surprise = None if isinstance(fault, BatchlineError) else fault
            log.warning("report on batch %s failed: %s", self.batch.id, fault, exc_info=surprise)

    def recovered(self, figures: Iterable[Figures]) -> None:
        """Nothing: what is found of a chunk is counted by `note`."""

    def is_first_try(self, chunk: int) -> bool:
        """Never: another process may have tried the chunk before."""
        del chunk
        return False

    def note(self, chunk: int, completed: int, failed: int) -> None:
        """Count requests of the chunk that are settled."""
        with self._lock:
            before = self._chunks.get(chunk, (0, 0))
            self._chunks[chunk] = before[0] + completed, before[1] + failed

    def forget(self, chunk: int) -> None:
        """Count the chunk anew."""
        with self._lock:
            self._chunks.pop(chunk, None)

    def _keep(self) -> None:
        while not self._over.wait(self._beat_s):
            self.report()
            if self._lost is None and time.monotonic() - self._alive_at > self.engine.settings.lease_s:
                self._lose(
                    LeaseLost(f"batch {self.batch.id}: its runner shows no life; another will go on with it")
                )

    def _exchange(self) -> None:
        began = time.monotonic()
        text = encode_report(self._report()).decode()
        lease = self.records.report_sender(self.batch.id, self._epoch, self.sender, text)
        self._note_life(lease, began)
        reports = reports_of(lease.reports)
        if lease.completed or any(settled([report])[0] for report in reports.values()):
            self.run.succeeded_elsewhere = True
        self._obey(lease.status, reports)

    def _report(self) -> SenderReport:
        self._number += 1
        progress = self.run.snapshot()
        if self._over.is_set():
            progress = at_rest(progress)
        with self._lock:
            chunks = dict(self._chunks)
        return SenderReport(number=self._number, chunks=chunks, progress=progress, stopped=self.run.stopped)

    def _note_life(self, lease: SharedLease, began: float) -> None:
        """Let the run send for half a lease from the runner's last heartbeat."""
        self._alive_at = max(self._alive_at, began - max(0.0, lease.age_s))
        self.run.renew(self._alive_at + self.engine.settings.lease_s / 2 - time.monotonic())

    def _obey(self, status: BatchStatus, reports: dict[str, SenderReport]) -> None:
        runner = reports.pop(RUNNER, SenderReport())
        if status is BatchStatus.CANCELLING:
            self.run.stop(CANCELLED)
        elif (stop := runner.stopped or refusal(reports.values())) is not None:
            self.run.stop(stop)


_joined: dict[tuple[Engine, str, int], JoinedHold] = {}
_lock = threading.Lock()


@contextmanager
def joined(engine: Engine, order: ChunkOrder) -> Iterator[JoinedHold]:
    """This process's part in the batch, for the time in which the chunk is sent.

    Raises `LeaseLost` where the run that ordered it is over, `InvalidInput` where these records have no such
    batch, and `StorageFault`.
    """
    key = engine, order.batch_id, order.epoch
    hold = _join(key, order)
    hold.forget(order.chunk.index)
    try:
        yield hold
    finally:
        with _lock:
            hold.users -= 1
            if is_last := not hold.users:
                del _joined[key]
        if is_last:
            hold.close()
        hold.report()


def _join(key: tuple[Engine, str, int], order: ChunkOrder) -> JoinedHold:
    engine = key[0]
    with _lock:
        hold = _joined.get(key)
        if hold is None:
            hold = JoinedHold(engine, _batch(engine, order), order.epoch)
            try:
                hold.begin()
            except BaseException:
                hold.run.close()
                raise
            _joined[key] = hold
        hold.users += 1
        return hold


def _batch(engine: Engine, order: ChunkOrder) -> BatchRecord:
    try:
        return engine.records.get_batch(order.batch_id)
    except NotFound:
        raise InvalidInput(
            f"the records of this process ({engine.settings.home}) have no batch {order.batch_id}: processes that "
            "send for one another need the same BATCHLINE_DATABASE_URL and BATCHLINE_STORAGE_URL"
        ) from None

"""A process's hold on a batch: the lease, its heartbeat, and the run that sends for it.

One runner at a time holds a batch's lease. Its heartbeat carries the counts out and the wish to cancel in;
when it cannot be kept up, sending stops before another runner may begin. Where other processes send the chunks, it
also carries what they report in, and out to them that they are to stop.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from batchline.models.errors import BatchlineError, Conflict, LeaseLost, NotFound, StorageFault
from batchline.models.failures import ErrorCode
from batchline.models.status import BatchStatus
from batchline.steps.chunk import ChunkOrder
from batchline.steps.engine import Engine
from batchline.steps.figures import Figures
from batchline.steps.sending import Sending
from batchline.steps.shared import Elsewhere, SenderReport, encode_report, refusal, reports_of
from batchline.storage.owners import owner_name
from batchline.storage.records import BatchRecord, Lease
from batchline.storage.senders import RUNNER
from batchline.upstream.progress import RunProgress
from batchline.upstream.run import Stop

log = logging.getLogger(__name__)

STOPPING_S = 60.0
"""Seconds that a runner may take to save its answers, beyond its grace period and its lease."""

LOOK_S = 0.5
"""Between looks at the lease of a runner that may be dead."""


class BatchHold(Sending):
    """The lease of one batch, kept alive by a thread, with the run that sends the batch's requests."""

    without_upstream = "no upstream serves model {model!r} any more; add it to an upstream's models"

    def __init__(self, engine: Engine, batch: BatchRecord, lease: Lease, *, claimed_at: float) -> None:
        super().__init__(engine, batch, sender=RUNNER, requests=0)
        self.lease = lease
        self._elsewhere: Elsewhere | None = None
        self._reported = 0
        self._settled_before = [0, 0]
        self._tried: set[int] = set()
        self._beaten(claimed_at)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"heartbeat {batch.id}", daemon=True)

    def __enter__(self) -> Self:
        if self.batch.status is BatchStatus.CANCELLING:
            self.run.stop(CANCELLED)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._end_heartbeat(self._thread)
        self.run.close()
        if self._lost is None:
            try:
                self.records.release(self.lease)
            except (StorageFault, LeaseLost) as fault:
                log.warning("lease of %s not released: %s; it goes stale by itself", self.batch.id, fault)

    def recovered(self, figures: Iterable[Figures]) -> None:
        """Count requests that an earlier run had settled."""
        rows = list(figures)
        self.settled_before(sum(row.ok for row in rows), sum(row.failed for row in rows))

    def settled_before(self, completed: int, failed: int) -> None:
        """Count requests that were settled before this run."""
        with self._lock:
            self._settled_before[0] += completed
            self._settled_before[1] += failed

    def is_first_try(self, chunk: int) -> bool:
        """Whether the chunk has not been tried under this hold before; asking makes it so."""
        with self._lock:
            is_first = chunk not in self._tried
            self._tried.add(chunk)
            return is_first

    def note(self, chunk: int, completed: int, failed: int) -> None:
        """Nothing: the run counts what is settled in this process."""

    def share(self) -> None:
        """Let other processes send chunks: from now on they are heard, and told when to stop."""
        self._elsewhere = Elsewhere()

    def hear(self) -> None:
        """Take in what other processes have reported; stop where an upstream refuses all that they send."""
        if self._elsewhere is None:
            return
        self._reported += 1
        mine = SenderReport(number=self._reported, stopped=self.run.stopped)
        told = self.records.report_sender(
            self.batch.id, self.lease.epoch, RUNNER, encode_report(mine).decode()
        ).reports
        told.pop(RUNNER)
        reports = reports_of(told)
        self._elsewhere.hear(reports)
        if (stop := refusal(reports.values())) is not None:
            self.run.stop(stop)

    def progress(self) -> RunProgress:
        """How far this run has come, in all of its processes, without what was settled before."""
        mine = self.run.snapshot()
        return mine if self._elsewhere is None else self._elsewhere.with_theirs(mine)

    def counts(self) -> tuple[int, int]:
        """Requests completed and failed so far, those of earlier runs included."""
        now = self.run.snapshot()
        theirs = (0, 0) if self._elsewhere is None else self._elsewhere.counts()
        with self._lock:
            completed, failed = self._settled_before
        return completed + now.completed + theirs[0], failed + now.failed + theirs[1]

    def interrupt(self, why: str) -> None:
        """Stop sending and leave what is unsettled for another run."""
        self.run.stop(Stop(code=None, message=why))

    def _keep(self) -> None:
        while not self._released.wait(self._beat_s):
            try:
                self._beat()
            except LeaseLost as lost:
                return self._lose(lost)
            except NotFound:
                return self._lose(LeaseLost(f"batch {self.batch.id} was deleted while it ran"))
            except Exception as fault:  # without a heartbeat the run must end, whatever the reason
                surprise = None if isinstance(fault, BatchlineError) else fault
                log.warning("heartbeat of %s failed: %s", self.batch.id, fault, exc_info=surprise)
                if self._is_stale():
                    return self._lose(LeaseLost(f"batch {self.batch.id}: no heartbeat for half a lease: {fault}"))
        return None

    def _beat(self) -> None:
        began = time.monotonic()
        with self._beating():
            self.hear()
            completed, failed = self.counts()
            status = self.records.beat(self.lease, completed=completed, failed=failed)
        self._beaten(began)
        if status is BatchStatus.CANCELLING:
            self.run.stop(CANCELLED)

    def _beaten(self, at: float) -> None:
        """Note a heartbeat and let the run send for half a lease, counted from before it was written.

        A process that was paused since then does not take the pause for a part of that half.
        """
        self._beaten_at = at
        self.run.renew(at + self.engine.settings.lease_s / 2 - time.monotonic())

    def _is_stale(self) -> bool:
        return time.monotonic() - self._beaten_at > self.engine.settings.lease_s / 2


CANCELLED = Stop(code=ErrorCode.BATCH_CANCELLED, message="the batch was cancelled before this request was settled")


_held: dict[tuple[str, int], BatchHold] = {}
_held_lock = threading.Lock()


def wait_for_lease(
    engine: Engine, batch: BatchRecord, say: Callable[[str], object], *, is_stopping: bool = False
) -> None:
    """Wait until the lease of a runner that died expires; raises `Conflict` once that runner shows life.

    A runner that `is_stopping` shows life until its requests in flight are answered and saved, and is waited for.
    """
    settings, first, said = engine.settings, batch.lease_at, False
    patience_s = settings.grace_s + settings.lease_s + STOPPING_S if is_stopping else 0.0
    give_up_at = time.monotonic() + patience_s
    while batch.lease_owner is not None and batch.lease_at is not None:
        left_s = batch.lease_at + settings.lease_s - engine.records.now()
        if left_s < 0 or engine.records.has_died(batch):
            return
        if batch.lease_at != first and time.monotonic() >= give_up_at:
            raise Conflict(
                f"batch {batch.id} is being run by another process ({batch.lease_owner}), which is alive"
            )
        if not said:
            say(f"another process holds this batch; waiting {max(left_s, patience_s):.0f} s at most")
            said = True
        time.sleep(LOOK_S)
        batch = engine.records.get_batch(batch.id)


@contextmanager
def hold_batch(engine: Engine, batch_id: str) -> Iterator[BatchHold]:
    """Claim the batch's lease and keep it; raises `Conflict` while another runner has it."""
    claimed_at = time.monotonic()
    lease = engine.records.claim(batch_id, owner=owner_name(), lease_s=engine.settings.lease_s)
    try:
        hold = BatchHold(engine, engine.records.get_batch(batch_id), lease, claimed_at=claimed_at)
    except BaseException:
        engine.records.release(lease)
        raise
    with hold, _registered(hold):
        yield hold


@contextmanager
def _registered(hold: BatchHold) -> Iterator[None]:
    key = (hold.batch.id, hold.lease.epoch)
    with _held_lock:
        _held[key] = hold
    try:
        yield
    finally:
        with _held_lock:
            del _held[key]


def hold_of(order: ChunkOrder) -> BatchHold | None:
    """This process's hold for a chunk; none where another process has it, or the run that ordered it is over."""
    with _held_lock:
        return _held.get((order.batch_id, order.epoch))


def held(batch_id: str) -> BatchHold | None:
    """This process's hold on that batch, while it runs here."""
    with _held_lock:
        return next((hold for (held_id, _), hold in _held.items() if held_id == batch_id), None)

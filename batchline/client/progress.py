"""How batches that are not over get on, for those who look at them now and then."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from batchline.engine.lease import BatchLease, active_lease
from batchline.engine.progress_meter import RATE_WINDOW_S, RecentRate
from batchline.engine.services import Services
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import BatchRecord
from batchline.upstream.session_progress import SessionProgress

MAX_TRACKED_BATCHES: Final = 1_000
MIN_OBSERVED_S: Final = 1.0
"""How long a rate must have been watched to be told."""


class BatchProgress(NamedTuple):
    """A batch at one moment; what only its runner knows is absent where that is another process."""

    completed: int
    failed: int
    total: int
    per_s: float | None
    """Requests settled in a second, of late."""

    eta_s: float | None
    session: SessionProgress | None
    note: str
    """Why it does not move; empty where it does."""

    @property
    def settled(self) -> int:
        """Requests that have come to an end."""
        return self.completed + self.failed


class ProgressTracker:
    """Remembers how far batches were when they were looked at, for their rates; used from any thread."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._rates: OrderedDict[str, tuple[float, RecentRate]] = OrderedDict()

    def snapshot(self, batch: BatchRecord) -> BatchProgress:
        """How the batch gets on."""
        lease = self._local_lease(batch.id)
        recorded, live = (batch.completed, batch.failed), (0, 0) if lease is None else lease.counts()
        completed, failed = max(recorded, live, key=sum)  # one that goes on counts anew what it had settled
        session = None if lease is None else lease.progress()
        note = runner_state(batch, now=self._services.records.now(), lease_s=self._services.settings.lease_s)
        if session is not None and session.paused:
            note = session.paused
        per_s = None
        if batch.status is BatchStatus.IN_PROGRESS:
            settled = completed + failed if session is None else session.completed + session.failed
            per_s = self._measure_rate(f"{batch.id} {batch.epoch}", settled, batch)
        remaining = batch.total - completed - failed
        is_waiting = bool(note) and (session is None or not session.in_flight)
        eta_s = remaining / per_s if per_s and remaining > 0 and not is_waiting else None
        return BatchProgress(completed, failed, batch.total, per_s, eta_s, session, note)

    def _local_lease(self, batch_id: str) -> BatchLease | None:
        lease = active_lease(batch_id)
        return lease if lease is not None and lease.services is self._services and lease.batch.total else None

    def _measure_rate(self, key: str, settled: int, batch: BatchRecord) -> float | None:
        """Of the last minute as far as it was watched, else of all the time that it has been sending."""
        now = time.monotonic()
        with self._lock:
            seen_at, rate = self._rates.pop(key, (now, RecentRate()))
            if now - seen_at > RATE_WINDOW_S:
                rate = RecentRate()
            rate.add(now, settled)
            self._rates[key] = now, rate
            if len(self._rates) > MAX_TRACKED_BATCHES:
                self._rates.popitem(last=False)
            recent_per_s = rate.per_s() if rate.observed_s() >= MIN_OBSERVED_S else None
        return recent_per_s if recent_per_s is not None else _average_rate(batch, settled)


def _average_rate(batch: BatchRecord, settled: int) -> float | None:
    """None for a retry, whose counts hold what was settled before."""
    if batch.in_progress_at is None or batch.generation:
        return None
    return settled / max(1.0, time.time() - batch.in_progress_at) or None


def runner_state(batch: BatchRecord, *, now: float, lease_s: float) -> str:
    """Why a batch that is not over does not move; empty where it does, or is over."""
    if batch.status in TERMINAL_STATUSES or batch.is_leased(now=now, lease_s=lease_s):
        return ""
    if batch.lease_owner is not None:
        return "runner died"
    return "waiting" if batch.status is BatchStatus.VALIDATING else "stopped"

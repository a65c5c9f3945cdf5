"""Progress, rate and ETA of active batches, measured between occasional reads."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from batchline.engine.lease import active_lease
from batchline.engine.progress_meter import RATE_WINDOW_S, RecentRate
from batchline.engine.services import Services
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import BatchRecord
from batchline.upstream.session_progress import SessionProgress

MAX_TRACKED_BATCHES: Final = 1_000
MIN_OBSERVED_S: Final = 1.0
"""Seconds of observation below which no rate is given."""


class BatchProgress(NamedTuple):
    """The progress of a batch at one moment; `session` is None if another process runs it."""

    completed: int
    failed: int
    total: int
    per_s: float | None
    """Requests settled per second in the last minute."""

    eta_s: float | None
    session: SessionProgress | None
    note: str
    """The reason why the batch is not advancing; empty if it is."""

    @property
    def settled(self) -> int:
        """Requests that have a final result."""
        return self.completed + self.failed


class ProgressTracker:
    """Remembers earlier progress of batches to compute their rates; thread-safe."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._rates: OrderedDict[str, tuple[float, RecentRate]] = OrderedDict()

    def snapshot(self, batch: BatchRecord) -> BatchProgress:
        """Return the batch's current progress."""
        lease = active_lease(batch.id)
        if lease is not None and (lease.services is not self._services or not lease.batch.total):
            lease = None
        recorded, live = (batch.completed, batch.failed), (0, 0) if lease is None else lease.counts()
        completed, failed = max(recorded, live, key=sum)  # a resumed batch counts its earlier results again from 0
        session = None if lease is None else lease.progress()
        note = runner_state(batch, now=self._services.records.now(), lease_s=self._services.settings.lease_s)
        if session is not None and session.paused and batch.pause is None:
            note = session.paused
        per_s = None
        if batch.status is BatchStatus.IN_PROGRESS:
            settled = completed + failed if session is None else session.completed + session.failed
            per_s = self._measure_rate(f"{batch.id} {batch.epoch}", settled, batch)
        remaining = batch.total - completed - failed
        is_waiting = bool(note) and (session is None or not session.in_flight)
        eta_s = remaining / per_s if per_s and remaining > 0 and not is_waiting else None
        return BatchProgress(completed, failed, batch.total, per_s, eta_s, session, note)

    def _measure_rate(self, key: str, settled: int, batch: BatchRecord) -> float | None:
        """Return the rate over the observed part of the last minute, else the average since sending began."""
        now = time.monotonic()
        with self._lock:
            seen_at, rate = self._rates.pop(key, (now, RecentRate()))
            if now - seen_at > RATE_WINDOW_S:
                # Not read for a whole window: old points would average over the gap.
                rate = RecentRate()
            rate.add(now, settled)
            self._rates[key] = now, rate
            if len(self._rates) > MAX_TRACKED_BATCHES:
                self._rates.popitem(last=False)
            recent_per_s = rate.per_s() if rate.observed_s() >= MIN_OBSERVED_S else None
        # The counts of a retry include earlier results.
        if recent_per_s is not None or batch.in_progress_at is None or batch.generation:
            return recent_per_s
        return settled / max(1.0, time.time() - batch.in_progress_at) or None


def runner_state(batch: BatchRecord, *, now: float, lease_s: float) -> str:
    """Return why an active batch has no runner, or will have none; empty if it has one or the batch has ended."""
    if batch.pause is not None:
        return "paused"
    if batch.status in TERMINAL_STATUSES or batch.is_leased(now=now, lease_s=lease_s):
        return ""
    if batch.lease_owner is not None:
        return "runner died"
    return "waiting" if batch.status is BatchStatus.VALIDATING else "stopped"

"""How batches that are not over get on, for those who look at them now and then."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from batchline.models.status import TERMINAL, BatchStatus
from batchline.steps.engine import Engine
from batchline.steps.hold import BatchHold, held
from batchline.steps.meter import WINDOW_S, RecentRate
from batchline.storage.records import BatchRecord
from batchline.upstream.progress import RunProgress

MOST_WATCHED: Final = 1_000
LEAST_S: Final = 1.0
"""How long a rate must have been watched to be told."""


class Progress(NamedTuple):
    """A batch at one moment; what only its runner knows is absent where that is another process."""

    completed: int
    failed: int
    total: int
    per_s: float | None
    """Requests settled in a second, of late."""

    left_s: float | None
    run: RunProgress | None
    note: str
    """Why it does not move; empty where it does."""

    @property
    def settled(self) -> int:
        """Requests that have come to an end."""
        return self.completed + self.failed


class Watch:
    """Remembers how far batches were when they were looked at, for their rates; used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._rates: OrderedDict[str, tuple[float, RecentRate]] = OrderedDict()

    def look(self, batch: BatchRecord) -> Progress:
        """How the batch gets on."""
        hold = self._held(batch.id)
        known, fresh = (batch.completed, batch.failed), (0, 0) if hold is None else hold.counts()
        completed, failed = max(known, fresh, key=sum)  # one that goes on counts anew what it had settled
        run = None if hold is None else hold.progress()
        note = runner_note(batch, now=self._engine.records.now(), lease_s=self._engine.settings.lease_s)
        if run is not None and run.paused:
            note = run.paused
        per_s = None
        if batch.status is BatchStatus.IN_PROGRESS:
            own = completed + failed if run is None else run.completed + run.failed
            per_s = self._rate(f"{batch.id} {batch.epoch}", own, batch)
        left = batch.total - completed - failed
        is_waiting = bool(note) and (run is None or not run.in_flight)
        left_s = left / per_s if per_s and left > 0 and not is_waiting else None
        return Progress(completed, failed, batch.total, per_s, left_s, run, note)

    def _held(self, batch_id: str) -> BatchHold | None:
        hold = held(batch_id)
        return hold if hold is not None and hold.engine is self._engine and hold.batch.total else None

    def _rate(self, key: str, settled: int, batch: BatchRecord) -> float | None:
        """Of the last minute as far as it was watched, else of all the time that it has been sending."""
        now = time.monotonic()
        with self._lock:
            seen_at, rate = self._rates.pop(key, (now, RecentRate()))
            if now - seen_at > WINDOW_S:
                rate = RecentRate()
            rate.add(now, settled)
            self._rates[key] = now, rate
            if len(self._rates) > MOST_WATCHED:
                self._rates.popitem(last=False)
            watched = rate.per_s() if rate.watched_s() >= LEAST_S else None
        return watched if watched is not None else _since_the_start(batch, settled)


def _since_the_start(batch: BatchRecord, settled: int) -> float | None:
    """None for a retry, whose counts hold what was settled before."""
    if batch.in_progress_at is None or batch.generation:
        return None
    return settled / max(1.0, time.time() - batch.in_progress_at) or None


def runner_note(batch: BatchRecord, *, now: float, lease_s: float) -> str:
    """Why a batch that is not over does not move; empty where it does, or is over."""
    if batch.status in TERMINAL or batch.is_held(now=now, lease_s=lease_s):
        return ""
    if batch.lease_owner is not None:
        return "runner died"
    return "waiting" if batch.status is BatchStatus.VALIDATING else "stopped"

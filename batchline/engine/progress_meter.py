"""How far a running batch has come, how fast it goes now, and how long it still takes."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from batchline.models.formatting import span, speed
from batchline.storage.records.store import BatchRecord
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.session_progress import SessionProgress

RATE_WINDOW_S = 60.0
IDLE_AFTER_S = 20.0
"""Without an answer for so long, the silence is shown instead of a rate."""


class CountsSource(Protocol):
    """What is read of a `BatchLease`."""

    batch: BatchRecord
    session: BatchSession

    def counts(self) -> tuple[int, int]:
        """Requests completed and failed so far, those of earlier runs included."""

    def progress(self) -> SessionProgress:
        """How far this process's run has come."""


class ProgressSnapshot(NamedTuple):
    """A batch at one moment, in numbers and in words."""

    settled: int
    total: int
    failed: int
    eta: str
    details: str
    paused: str | None


class RecentRate:
    """How fast a count grows, measured over its last minute: what was long ago says little of what comes."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()
        self._last_increase_at = 0.0

    def add(self, now: float, count: int) -> None:
        """Note the count at that time."""
        points = self._points
        if not points or count > points[-1][1]:
            self._last_increase_at = now
        points.append((now, count))
        while len(points) > 2 and points[1][0] <= now - self._window_s:
            points.popleft()

    def per_s(self) -> float | None:
        """The rate; none before there are two points."""
        if len(self._points) < 2:
            return None
        (first_at, first_count), (last_at, last_count) = self._points[0], self._points[-1]
        return (last_count - first_count) / max(last_at - first_at, 1e-3)

    def observed_s(self) -> float:
        """Seconds between its points."""
        return self._points[-1][0] - self._points[0][0] if self._points else 0.0

    def idle_s(self) -> float:
        """Seconds since the count last grew."""
        return self._points[-1][0] - self._last_increase_at if self._points else 0.0


class ProgressMeter:
    """Reads a hold's counters again and again."""

    def __init__(self, source: CountsSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._rate = RecentRate()

    def read(self) -> ProgressSnapshot | None:
        """Where the batch is now; none while its input is being checked."""
        total = self._source.batch.total
        if not total:
            return None
        completed, failed = self._source.counts()
        settled, progress = completed + failed, self._source.progress()
        # This run's own answers: what an earlier one left comes in all at once and says nothing of the speed.
        self._rate.add(self._clock(), progress.completed + progress.failed)
        details = [f"{progress.total_tokens:,} tokens", in_flight_text(progress)]
        if rate := self._rate.per_s():
            details.insert(0, speed(rate))
        if self._rate.idle_s() > IDLE_AFTER_S and settled < total:
            details.append(f"no answer for {span(self._rate.idle_s())}")
        eta = self._eta_text(total - settled, is_waiting=bool(progress.paused) and not progress.in_flight)
        return ProgressSnapshot(settled, total, failed, eta, " · ".join(details), progress.paused)

    def eta_s(self) -> float | None:
        """Seconds until all is settled at the rate of the last minute; none where that is unknown."""
        completed, failed = self._source.counts()
        requests, rate = self._source.batch.total - completed - failed, self._rate.per_s()
        return requests / rate if requests and rate and self._source.session.stop_reason is None else None

    def _eta_text(self, remaining: int, *, is_waiting: bool) -> str:
        if not remaining:
            return "writing the files"
        if self._source.session.stop_reason is not None:
            return "stopping"
        if is_waiting or self._rate.idle_s() > IDLE_AFTER_S:
            return ""  # the rate of before says nothing about when requests are sent again
        eta_s = self.eta_s()
        return f"about {span(max(1.0, eta_s))} left" if eta_s else ""


def in_flight_text(progress: SessionProgress) -> str:
    """How many requests are under way, and how many may be where the upstream has asked for less."""
    text = f"{progress.in_flight:,} in flight"
    if progress.limit < progress.ceiling:
        text += f" (at most {progress.limit:,} of {progress.ceiling:,} for now)"
    return text

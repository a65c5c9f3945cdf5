"""Measures a running batch: progress, current rate, and remaining time."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from batchline.engine.lease import BatchLease
from batchline.models.formatting import format_rate, format_span
from batchline.upstream.session_progress import SessionProgress

RATE_WINDOW_S = 60.0
IDLE_AFTER_S = 20.0
"""Seconds without a settled request after which the idle time is shown instead of a rate."""


class ProgressSnapshot(NamedTuple):
    """The progress of a batch at one moment, as numbers and as text."""

    settled: int
    total: int
    failed: int
    eta: str
    details: str
    paused: str | None


class RecentRate:
    """The growth rate of a count over the last minute, as older values predict little."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()
        self._last_increase_at = 0.0

    def add(self, now: float, count: int) -> None:
        """Record the count at a time in seconds."""
        points = self._points
        if not points or count > points[-1][1]:
            self._last_increase_at = now
        points.append((now, count))
        # One point at or before the window's start stays, so that the points span the whole window.
        while len(points) > 2 and points[1][0] <= now - self._window_s:
            points.popleft()

    def per_s(self) -> float | None:
        """Return the rate per second, or None if there are fewer than two points."""
        if len(self._points) < 2:
            return None
        (first_at, first_count), (last_at, last_count) = self._points[0], self._points[-1]
        return (last_count - first_count) / max(last_at - first_at, 1e-3)

    def observed_s(self) -> float:
        """Return the seconds between the oldest and the newest point."""
        return self._points[-1][0] - self._points[0][0] if self._points else 0.0

    def idle_s(self) -> float:
        """Return the seconds since the count last grew."""
        return self._points[-1][0] - self._last_increase_at if self._points else 0.0


class ProgressMeter:
    """Computes progress snapshots from repeated readings of a lease's counters."""

    def __init__(self, lease: BatchLease, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease = lease
        self._clock = clock
        self._rate = RecentRate()

    def read(self) -> ProgressSnapshot | None:
        """Return the batch's progress, or None while its input is being validated."""
        total = self._lease.batch.total
        if not total:
            return None
        completed, failed = self._lease.counts()
        settled, progress = completed + failed, self._lease.progress()
        # Only requests settled in this session: recovered ones arrive all at once and would distort the rate.
        self._rate.add(self._clock(), progress.completed + progress.failed)
        details = [f"{progress.total_tokens:,} tokens", in_flight_text(progress)]
        if rate := self._rate.per_s():
            details.insert(0, format_rate(rate))
        if self._rate.idle_s() > IDLE_AFTER_S and settled < total:
            details.append(f"no answer for {format_span(self._rate.idle_s())}")
        eta = self._eta_text(total - settled, is_waiting=bool(progress.paused) and not progress.in_flight)
        return ProgressSnapshot(settled, total, failed, eta, " · ".join(details), progress.paused)

    def eta_s(self) -> float | None:
        """Return the seconds until all requests are settled at the current rate, or None if that is unknown."""
        completed, failed = self._lease.counts()
        requests, rate = self._lease.batch.total - completed - failed, self._rate.per_s()
        return requests / rate if requests and rate and self._lease.session.stop_reason is None else None

    def _eta_text(self, remaining: int, *, is_waiting: bool) -> str:
        if not remaining:
            return "writing the files"
        if self._lease.session.stop_reason is not None:
            return "stopping"
        if is_waiting or self._rate.idle_s() > IDLE_AFTER_S:
            return ""  # the earlier rate does not predict when sending resumes
        eta_s = self.eta_s()
        return f"about {format_span(max(1.0, eta_s))} left" if eta_s else ""


def in_flight_text(progress: SessionProgress) -> str:
    """Return the number of requests in flight as text, with the limit if the upstream has lowered it."""
    text = f"{progress.in_flight:,} in flight"
    if progress.limit < progress.ceiling:
        text += f" (at most {progress.limit:,} of {progress.ceiling:,} for now)"
    return text

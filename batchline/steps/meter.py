"""How far a running batch has come, how fast it goes now, and how long it still takes."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from batchline.models.formatting import span, speed
from batchline.storage.records import BatchRecord
from batchline.upstream.progress import RunProgress
from batchline.upstream.run import Run

WINDOW_S = 60.0
SILENCE_S = 20.0
"""Without an answer for so long, the silence is shown instead of a rate."""


class Counting(Protocol):
    """What is read of a `BatchHold`."""

    batch: BatchRecord
    run: Run

    def counts(self) -> tuple[int, int]:
        """Requests completed and failed so far, those of earlier runs included."""

    def progress(self) -> RunProgress:
        """How far this process's run has come."""


class Reading(NamedTuple):
    """A batch at one moment, in numbers and in words."""

    settled: int
    total: int
    failed: int
    left: str
    details: str
    paused: str | None


class RecentRate:
    """How fast a count grows, measured over its last minute: what was long ago says little of what comes."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()
        self._grew_at = 0.0

    def add(self, now: float, count: int) -> None:
        """Note the count at that time."""
        points = self._points
        if not points or count > points[-1][1]:
            self._grew_at = now
        points.append((now, count))
        while len(points) > 2 and points[1][0] <= now - self._window_s:
            points.popleft()

    def per_s(self) -> float | None:
        """The rate; none before there are two points."""
        if len(self._points) < 2:
            return None
        (began, first), (now, last) = self._points[0], self._points[-1]
        return (last - first) / max(now - began, 1e-3)

    def watched_s(self) -> float:
        """Seconds between its points."""
        return self._points[-1][0] - self._points[0][0] if self._points else 0.0

    def silent_s(self) -> float:
        """Seconds since the count last grew."""
        return self._points[-1][0] - self._grew_at if self._points else 0.0


class Meter:
    """Reads a hold's counters again and again."""

    def __init__(self, hold: Counting, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold = hold
        self._clock = clock
        self._rate = RecentRate()

    def read(self) -> Reading | None:
        """Where the batch is now; none while its input is being checked."""
        total = self._hold.batch.total
        if not total:
            return None
        completed, failed = self._hold.counts()
        settled, progress = completed + failed, self._hold.progress()
        # This run's own answers: what an earlier one left comes in all at once and says nothing of the speed.
        self._rate.add(self._clock(), progress.completed + progress.failed)
        words = [f"{progress.total_tokens:,} tokens", in_flight(progress)]
        if rate := self._rate.per_s():
            words.insert(0, speed(rate))
        if self._rate.silent_s() > SILENCE_S and settled < total:
            words.append(f"no answer for {span(self._rate.silent_s())}")
        left = self._left(total - settled, is_waiting=bool(progress.paused) and not progress.in_flight)
        return Reading(settled, total, failed, left, " · ".join(words), progress.paused)

    def left_s(self) -> float | None:
        """Seconds until all is settled at the rate of the last minute; none where that is unknown."""
        completed, failed = self._hold.counts()
        requests, rate = self._hold.batch.total - completed - failed, self._rate.per_s()
        return requests / rate if requests and rate and self._hold.run.stopped is None else None

    def _left(self, requests: int, *, is_waiting: bool) -> str:
        if not requests:
            return "writing the files"
        if self._hold.run.stopped is not None:
            return "stopping"
        if is_waiting or self._rate.silent_s() > SILENCE_S:
            return ""  # the rate of before says nothing about when requests are sent again
        left_s = self.left_s()
        return f"about {span(max(1.0, left_s))} left" if left_s else ""


def in_flight(progress: RunProgress) -> str:
    """How many requests are under way, and how many may be where the upstream has asked for less."""
    words = f"{progress.in_flight:,} in flight"
    if progress.limit < progress.ceiling:
        words += f" (at most {progress.limit:,} of {progress.ceiling:,} for now)"
    return words

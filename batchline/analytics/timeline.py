"""Counts requests and tokens over time, in at most a few hundred intervals, which widen as a batch runs longer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from math import floor

import numpy as np

from batchline.analytics.exact_sum import exact_sums
from batchline.models.analytics import ThroughputPoint

MAX_INTERVALS = 240

WIDTHS_S = (0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0)
"""Interval widths, each a multiple of the one before, so that intervals can be merged; after these they double."""


@dataclass(slots=True)
class Interval:
    """Counts of one interval; `_s` are sums of seconds from its start to each start or end of a request."""

    completed: int = 0
    failed: int = 0
    tokens: int = 0
    started: int = 0
    started_s: float = 0.0
    ended: int = 0
    ended_s: float = 0.0

    def merge(self, other: Interval, offset_s: float) -> None:
        """Add the counts of another interval, which begins `offset_s` seconds after this one."""
        self.completed += other.completed
        self.failed += other.failed
        self.tokens += other.tokens
        self.started += other.started
        self.started_s += other.started_s + other.started * offset_s
        self.ended += other.ended
        self.ended_s += other.ended_s + other.ended * offset_s


class Timeline:
    """Intervals by number; each begins at its number times the width, in Unix seconds."""

    def __init__(self) -> None:
        self.width_s = WIDTHS_S[0]
        self.first_s: float | None = None
        self.last_s: float | None = None
        self._intervals: defaultdict[int, Interval] = defaultdict(Interval)

    def add(self, started_at: np.ndarray, ended_at: np.ndarray, ok: np.ndarray, tokens: np.ndarray) -> None:
        """Add requests: start and end in Unix seconds (no NaN), whether each succeeded, and its tokens."""
        if not len(started_at):
            return
        first_s, last_s = float(started_at.min()), float(ended_at.max())
        self.first_s = first_s if self.first_s is None else min(self.first_s, first_s)
        self.last_s = last_s if self.last_s is None else max(self.last_s, last_s)
        self._widen_intervals()
        for interval, number, offset_s, _ in self._group_by_interval(started_at):
            interval.started += number
            interval.started_s += offset_s
        for interval, number, offset_s, _ in self._group_by_interval(ended_at):
            interval.ended += number
            interval.ended_s += offset_s
        for interval, number, *_ in self._group_by_interval(ended_at[~ok]):
            interval.failed += number
        for interval, number, _, total in self._group_by_interval(ended_at[ok], tokens[ok]):
            interval.completed += number
            interval.tokens += total

    def _group_by_interval(
        self, times: np.ndarray, tokens: np.ndarray | None = None
    ) -> Iterator[tuple[Interval, int, float, int]]:
        """Yield each interval with times in it: their number, sum of seconds from its start, and tokens."""
        indexes = np.floor(times / self.width_s).astype("int64")
        numbers, inverse, sizes = np.unique(indexes, return_inverse=True, return_counts=True)
        offsets = np.bincount(inverse, weights=times - indexes * self.width_s, minlength=len(numbers))
        totals = [0] * len(numbers) if tokens is None else exact_sums(inverse, tokens, len(numbers))
        for number, size, offset_s, total in zip(
            numbers.tolist(), sizes.tolist(), offsets.tolist(), totals, strict=True
        ):
            yield self._intervals[number], size, offset_s, total

    def _widen_intervals(self) -> None:
        """Widen the intervals until there are at most `MAX_INTERVALS`."""
        first_s, last_s = self.first_s or 0.0, self.last_s or 0.0
        widths = chain(WIDTHS_S, (WIDTHS_S[-1] * 2**power for power in count(1)))
        width_s = next(
            width_s for width_s in widths if floor(last_s / width_s) - floor(first_s / width_s) < MAX_INTERVALS
        )
        if width_s <= self.width_s:
            return
        old, self._intervals = self._intervals, defaultdict(Interval)
        for number, interval in old.items():
            start = number * self.width_s
            wide_number = floor(start / width_s)
            self._intervals[wide_number].merge(interval, start - wide_number * width_s)
        self.width_s = width_s

    def points(self) -> list[ThroughputPoint]:
        """Return a point for each interval from the first to the last, empty ones included."""
        if not self._intervals:
            return []
        width_s, running, points = self.width_s, 0, []
        for number in range(min(self._intervals), max(self._intervals) + 1):
            interval = self._intervals.get(number) or Interval()
            # The mean over the interval: a request counts for the share of it after its start and before its end.
            started_share_s = interval.started * width_s - interval.started_s
            ended_share_s = interval.ended * width_s - interval.ended_s
            in_flight = running + (started_share_s - ended_share_s) / width_s
            running += interval.started - interval.ended
            points.append(
                ThroughputPoint(
                    at=number * width_s,
                    requests=interval.completed,
                    tokens=interval.tokens,
                    failed=interval.failed,
                    in_flight=max(0.0, round(in_flight, 3)),
                )
            )
        return points

"""Metrics of a process's calls since its start: outcomes, tokens and durations."""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import Final

from batchline.upstream.call_results import CallResult

BUCKET_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class DurationHistogram:
    """A histogram of durations; the last bucket has no upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKET_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self.counts[bisect_left(BUCKET_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative_counts(self) -> list[tuple[str, float]]:
        """Return each bucket's upper bound as text, and the number of durations up to it."""
        bounds = [*map(str, BUCKET_BOUNDS_S), "+Inf"]
        return [*zip(bounds, map(float, accumulate(self.counts)), strict=True)]


class CallMetrics:
    """Settled calls by outcome, their tokens and durations. Written by the loop, read by any thread."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.duration, self.time_to_first_byte = DurationHistogram(), DurationHistogram()

    def record_result(self, result: CallResult) -> None:
        """Add a settled call."""
        self.outcomes["completed" if result.code is None else result.code.value] += 1
        if result.usage is not None:
            self.prompt_tokens += result.usage.prompt_tokens
            self.completion_tokens += result.usage.completion_tokens
        if result.duration_s is not None:
            self.duration.observe(result.duration_s)
        if result.ttfb_s is not None:
            self.time_to_first_byte.observe(result.ttfb_s)

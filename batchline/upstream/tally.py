"""What a process's calls have come to since it began: outcomes, tokens and times, for whoever watches it."""

from bisect import bisect_left
from collections import Counter
from typing import Final

from batchline.upstream.answers import Answer

BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Spread:
    """How many durations fell below each bound, and what they add up to."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Tally:
    """Settled calls by outcome, their tokens and times. Written by the caller's loop, read by anyone."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = 0
        self.duration, self.first_byte = Spread(), Spread()

    def count(self, answer: Answer) -> None:
        """Count a settled call."""
        self.outcomes["completed" if answer.code is None else answer.code.value] += 1
        if answer.usage is not None:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.completion_tokens += answer.usage.completion_tokens
        if answer.duration_s is not None:
            self.duration.add(answer.duration_s)
        if answer.ttfb_s is not None:
            self.first_byte.add(answer.ttfb_s)

"""Classifies signals to stop: the first stops cleanly, a later one kills."""

import time
from typing import Literal

REPEATED_WITHIN_S = 2.0
"""Seconds within which a repeated signal counts as the first: `timeout` sends each one twice."""


class StopSignals:
    """A classifier that tells the first signal from its repetitions and from later signals."""

    def __init__(self) -> None:
        self._first_at: float | None = None

    def classify_next(self) -> Literal["first", "repeated", "later"]:
        """Classify a signal that has just been received."""
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            return "first"
        return "repeated" if now - self._first_at < REPEATED_WITHIN_S else "later"

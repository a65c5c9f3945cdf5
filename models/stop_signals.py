"""Signals to stop, of which the first stops cleanly and a later one kills."""

import time
from typing import Literal

REPEATED_WITHIN_S = 2.0
"""Seconds within which a repeated signal means the same: `timeout` sends each one twice."""


class StopSignals:
    """Tells the first signal from its repetitions and from later ones."""

    def __init__(self) -> None:
        self._first_at: float | None = None

    def classify_next(self) -> Literal["first", "repeated", "later"]:
        """Return what the signal that has just come is."""
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            return "first"
        return "repeated" if now - self._first_at < REPEATED_WITHIN_S else "later"

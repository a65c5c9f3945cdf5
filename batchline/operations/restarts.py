"""The delay before a batch whose run keeps failing is started again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

MOST_DELAY_S: Final = 900.0
FORGET_OVER: Final = 10_000
"""Batches remembered at most; those that ended are never asked for again."""


@dataclass
class _Starts:
    count: int
    settled: int
    failed_at: float | None = None


class Restarts:
    """Delays between the starts of a batch, which double while its runs settle no further request."""

    def __init__(self, first_delay_s: float) -> None:
        self._first_delay_s = first_delay_s
        self._starts: dict[str, _Starts] = {}

    def is_due(self, batch_id: str, settled: int) -> bool:
        """True if the batch, which no one runs at the moment, may be started."""
        known = self._starts.get(batch_id)
        if known is None:
            return True
        now = time.monotonic()
        if known.failed_at is None:
            known.failed_at = now
            if settled > known.settled:
                known.count = 1
        return now - known.failed_at >= self._delay_s(known.count)

    def started(self, batch_id: str, settled: int) -> None:
        """Note that the batch is started, with so many requests settled before."""
        known = self._starts.pop(batch_id, None)
        self._starts[batch_id] = _Starts(1 if known is None else known.count + 1, settled)
        if len(self._starts) > FORGET_OVER:
            del self._starts[next(iter(self._starts))]

    def _delay_s(self, starts: int) -> float:
        return min(MOST_DELAY_S, self._first_delay_s * 2.0 ** (starts - 1))

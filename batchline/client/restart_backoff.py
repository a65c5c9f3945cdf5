"""The delay before a batch whose run keeps failing is started again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

MAX_DELAY_S: Final = 900.0
MAX_REMEMBERED_BATCHES: Final = 10_000
"""Maximum of batches remembered; entries of ended batches are never used again."""


@dataclass
class _StartHistory:
    count: int
    settled: int
    failed_at: float | None = None


class RestartBackoff:
    """Delays between the starts of a batch, which double while its runs settle no further request."""

    def __init__(self, first_delay_s: float) -> None:
        self._first_delay_s = first_delay_s
        self._histories: dict[str, _StartHistory] = {}

    def is_due(self, batch_id: str, settled: int) -> bool:
        """True if the batch, which no one runs at the moment, may be started."""
        history = self._histories.get(batch_id)
        if history is None:
            return True
        now = time.monotonic()
        if history.failed_at is None:
            history.failed_at = now
            if settled > history.settled:
                history.count = 1  # the last run made progress, so its failure is not the same one again
        return now - history.failed_at >= min(MAX_DELAY_S, self._first_delay_s * 2.0 ** (history.count - 1))

    def record_start(self, batch_id: str, settled: int) -> None:
        """Record a start of the batch, with `settled` requests settled before."""
        history = self._histories.pop(batch_id, None)
        self._histories[batch_id] = _StartHistory(1 if history is None else history.count + 1, settled)
        if len(self._histories) > MAX_REMEMBERED_BATCHES:
            # Dicts keep insertion order, so the first is the oldest.
            del self._histories[next(iter(self._histories))]

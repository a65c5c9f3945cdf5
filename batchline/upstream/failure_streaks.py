"""Counts requests of a batch that fail in the same way, one after the other, for each upstream and model."""

from typing import Final

from batchline.models.failure_streak import FailureKind, FailureStreak
from batchline.models.outcomes import Judgement, OutReason

FORBIDDEN_TO_STOP: Final = 3
"""Different requests in a row that get a 403, after which the key is taken for wrong."""


class FailureStreaks:
    """The streaks of one batch; used on the dispatcher's loop."""

    def __init__(self, max_identical: int) -> None:
        self._max_identical = max_identical
        self._streaks: dict[tuple[str, str | None], FailureStreak] = {}
        self._forbidden: dict[str, set[int]] = {}
        self._answered: set[tuple[str, str | None]] = set()

    def on_success(self, upstream: str, model: str | None) -> None:
        """End the streaks of the upstream and model."""
        key = (upstream, model)
        self._answered.add(key)
        if self._streaks:
            self._streaks.pop(key, None)
        if self._forbidden:
            self._forbidden.pop(upstream, None)

    def on_failure(
        self, upstream: str, model: str | None, line: int, kind: FailureKind | None, *, is_final: bool
    ) -> int | None:
        """Count a request's failed attempt; return the length of the streak if it has just reached the limit.

        Failures without a kind are the request's own, and change nothing. Once the model has answered, only final
        failures count, as another attempt may succeed. Before that, each does: else many requests would be sent in
        vain before the first of them has used up its attempts.
        """
        key = (upstream, model)
        if key in self._answered and not is_final:
            return None
        streak = self._streaks.get(key)
        if streak is None:
            streak = self._streaks[key] = FailureStreak(self._max_identical)
        return streak.length if streak.on_failure(line, kind) else None

    def is_key_refused(self, upstream: str, line: int, judgement: Judgement) -> bool:
        """Count a 403; return True for the third different request that gets one without a success between."""
        if judgement.out_reason is not OutReason.UNAUTHORIZED:
            return False
        lines = self._forbidden.setdefault(upstream, set())
        lines.add(line)
        return len(lines) >= FORBIDDEN_TO_STOP

"""What happened when: completions, failures, tokens and requests in flight, in at most some hundred slots of time.

The slots get wider as the time to show gets longer, so that what is kept does not grow with the batch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from math import floor
from typing import TYPE_CHECKING

from batchline.models.analytics import ThroughputPoint
from batchline.steps.sums import exact_sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

MOST_SLOTS = 240

WIDTHS_S = (0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0)
"""Each a multiple of the one before; beyond, they double."""


@dataclass(slots=True)
class Slot:
    """What happened in one slot; `_s` are sums of seconds from its start to each start or end in it."""

    completed: int = 0
    failed: int = 0
    tokens: int = 0
    started: int = 0
    started_s: float = 0.0
    ended: int = 0
    ended_s: float = 0.0

    def take(self, other: Slot, offset_s: float) -> None:
        """Add what happened in another, which begins so many seconds behind this one."""
        self.completed += other.completed
        self.failed += other.failed
        self.tokens += other.tokens
        self.started += other.started
        self.started_s += other.started_s + other.started * offset_s
        self.ended += other.ended
        self.ended_s += other.ended_s + other.ended * offset_s


class Timeline:
    """The slots so far, by number: one begins at its number times the width, in Unix seconds."""

    def __init__(self) -> None:
        self.width_s = WIDTHS_S[0]
        self.first_s: float | None = None
        self.last_s: float | None = None
        self._slots: defaultdict[int, Slot] = defaultdict(Slot)

    def add(self, started: np.ndarray, ended: np.ndarray, ok: np.ndarray, tokens: np.ndarray) -> None:
        """Take in requests: start and end of each in Unix seconds, no NaN; whether it ended well; its tokens."""
        if not len(started):
            return
        first, last = float(started.min()), float(ended.max())
        self.first_s = first if self.first_s is None else min(self.first_s, first)
        self.last_s = last if self.last_s is None else max(self.last_s, last)
        self._widen()
        for slot, number, offset_s in self._grouped(started):
            slot.started += number
            slot.started_s += offset_s
        for slot, number, offset_s in self._grouped(ended):
            slot.ended += number
            slot.ended_s += offset_s
        for slot, number, _ in self._grouped(ended[~ok]):
            slot.failed += number
        self._add_completed(ended[ok], tokens[ok])

    def _grouped(self, at: np.ndarray) -> Iterator[tuple[Slot, int, float]]:
        """Each slot that any of those times is in, how many are, and the sum of seconds from its start."""
        import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request

        places = np.floor(at / self.width_s).astype("int64")
        numbers, inverse, sizes = np.unique(places, return_inverse=True, return_counts=True)
        offsets = np.bincount(inverse, weights=at - places * self.width_s, minlength=len(numbers))
        for number, size, offset_s in zip(numbers.tolist(), sizes.tolist(), offsets.tolist(), strict=True):
            yield self._slots[number], size, offset_s

    def _add_completed(self, ended: np.ndarray, tokens: np.ndarray) -> None:
        import numpy as np  # noqa: PLC0415 - as above

        places = np.floor(ended / self.width_s).astype("int64")
        numbers, inverse, sizes = np.unique(places, return_inverse=True, return_counts=True)
        sums = exact_sums(inverse, tokens, len(numbers))
        for number, size, total in zip(numbers.tolist(), sizes.tolist(), sums, strict=True):
            self._slots[number].completed += size
            self._slots[number].tokens += total

    def _widen(self) -> None:
        """Take wider slots until there are not too many."""
        first, last = self.first_s or 0.0, self.last_s or 0.0
        width_s = next(width_s for width_s in _widths() if _slots_between(first, last, width_s) <= MOST_SLOTS)
        if width_s <= self.width_s:
            return
        old, self._slots = self._slots, defaultdict(Slot)
        for number, slot in old.items():
            start = number * self.width_s
            wide = floor(start / width_s)
            self._slots[wide].take(slot, start - wide * width_s)
        self.width_s = width_s

    def points(self) -> list[ThroughputPoint]:
        """A point for each slot from the first to the last, empty ones included."""
        if not self._slots:
            return []
        width_s, under_way, points = self.width_s, 0, []
        for number in range(min(self._slots), max(self._slots) + 1):
            slot = self._slots.get(number) or Slot()
            gained = slot.started * width_s - slot.started_s
            lost = slot.ended * width_s - slot.ended_s
            in_flight = under_way + (gained - lost) / width_s
            under_way += slot.started - slot.ended
            points.append(
                ThroughputPoint(
                    at=number * width_s,
                    requests=slot.completed,
                    tokens=slot.tokens,
                    failed=slot.failed,
                    in_flight=max(0.0, round(in_flight, 3)),
                )
            )
        return points


def _widths() -> Iterator[float]:
    yield from WIDTHS_S
    yield from (WIDTHS_S[-1] * 2**power for power in count(1))


def _slots_between(first_s: float, last_s: float, width_s: float) -> int:
    return floor(last_s / width_s) - floor(first_s / width_s) + 1

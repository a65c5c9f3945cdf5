"""How much of an upstream's cap this process may have beside others that call the same one.

Each process decides for itself, again and again, from what all can see: the limit, how much of it is taken, and
how many processes have work. No two need to speak with each other. Pure.
"""

from collections.abc import Sequence
from typing import Final

GRAINS: Final = 64
"""A share is given back to within this part of the limit."""

LARGEST_PIECE: Final = 8
"""No piece is larger than this part of the limit: what leaves one process a piece at a time comes to another."""

RESERVE: Final = 32
"""Beyond its fair share a process leaves this part of the limit free; where it is gone, others want it."""

KEPT: Final = 8
"""A share that is larger than what is wanted by less than this part of itself is kept."""

YIELDS: Final = 0.1
"""How often, of all looks, a process gives up what is left over after all have the same, for another to take."""


def share(*, limit: int, taken: int, held: int, processes: int, wanted: int, luck: float, least: int = 1) -> int:
    """The slots that a process should hold which holds `held` of the limit's slots, of which `taken` are taken.

    `processes` have work, this one among them. `wanted` is what this one could use, and less than `least` is of no
    use to it: a request that costs more tokens than a fair share. `luck` is drawn anew each time, from 0 to 1.
    """
    if limit < 1:
        return 0
    least = min(max(1, least), limit)
    wanted, free = min(limit, wanted), limit - taken
    low, high = _fair(limit, processes, max(least, grain(limit)))
    if wanted < held - held // KEPT:
        return min(wanted, high) if free <= 0 else wanted
    target = _pursued(limit, free, held, wanted, low, high, luck)
    if target >= least or target == 0:
        return target
    if held + free >= least:
        return least
    return 0 if luck < YIELDS else min(target, max(1, limit // processes))


def _pursued(limit: int, free: int, held: int, wanted: int, low: int, high: int, luck: float) -> int:
    """The target of a process that could use what it has."""
    if free <= 0:
        if held > high:
            return high
        if held > low and luck < YIELDS:
            return low
        return max(held, min(low, wanted))
    if held < high:
        return max(held, min(wanted, high, held + free))
    return max(held, min(wanted, held + free - max(1, limit // RESERVE)))


def _fair(limit: int, processes: int, step: int) -> tuple[int, int]:
    """What every process may have, and what some may: the limit in steps, of which some are left over."""
    if processes <= 1:
        return limit, limit
    each, rest = divmod(limit // step, processes)
    return each * step, (each + (rest > 0)) * step


def grain(limit: int) -> int:
    """The smallest piece of a limit that is worth a lease."""
    return max(1, limit // GRAINS)


def pieces(slots: int, limit: int) -> list[int]:
    """The sizes in which to take so many slots: ever smaller, so that nearly any part can be given back."""
    sizes = []
    largest = max(grain(limit), limit // LARGEST_PIECE)
    while slots > 0:
        sizes.append(min(slots, largest, max(grain(limit), (slots + 1) // 2)))
        slots -= sizes[-1]
    return sizes


def to_give_back(sizes: Sequence[int], slots: int) -> list[int]:
    """The places of those pieces that together make as much of so many slots as can be, and no more."""
    chosen = []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        if sizes[place] <= slots:
            chosen.append(place)
            slots -= sizes[place]
    return chosen

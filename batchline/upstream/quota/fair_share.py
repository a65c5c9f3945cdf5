"""How much of an upstream's cap this process may have beside others that call the same one.

Each process decides for itself, again and again, from what all can see: the limit, how much of it is taken, and
how many processes have work. No two need to speak with each other. Pure.
"""

from collections.abc import Sequence
from typing import Final

STEPS_PER_LIMIT: Final = 64
"""A share is given back to within this part of the limit."""

MIN_LEASES_PER_LIMIT: Final = 8
"""No piece is larger than this part of the limit: what leaves one process a piece at a time comes to another."""

RESERVE_DIVISOR: Final = 32
"""Beyond its fair share a process leaves this part of the limit free; where it is gone, others want it."""

SHRINK_DIVISOR: Final = 8
"""A share that is larger than what is wanted by less than this part of itself is kept."""

YIELD_PROBABILITY: Final = 0.1
"""How often, of all looks, a process gives up what is left over after all have the same, for another to take."""


def compute_target_slots(
    *,
    limit: int,
    taken_slots: int,
    held_slots: int,
    processes: int,
    desired: int,
    random_value: float,
    minimum: int = 1,
) -> int:
    """The slots that a process should hold which holds `held` of the limit's slots, of which `taken` are taken.

    `processes` have work, this one among them. `wanted` is what this one could use, and less than `least` is of no
    use to it: a request that costs more tokens than a fair share. `luck` is drawn anew each time, from 0 to 1.
    """
    if limit < 1:
        return 0
    minimum = min(max(1, minimum), limit)
    desired, free_slots = min(limit, desired), limit - taken_slots
    low, high = _fair_range(limit, processes, max(minimum, step_size(limit)))
    if desired < held_slots - held_slots // SHRINK_DIVISOR:
        return min(desired, high) if free_slots <= 0 else desired
    target = _target_if_busy(limit, free_slots, held_slots, desired, low, high, random_value)
    if target >= minimum or target == 0:
        return target
    if held_slots + free_slots >= minimum:
        return minimum
    return 0 if random_value < YIELD_PROBABILITY else min(target, max(1, limit // processes))


def _target_if_busy(
    limit: int, free_slots: int, held_slots: int, desired: int, low: int, high: int, random_value: float
) -> int:
    """The target of a process that could use what it has."""
    if free_slots <= 0:
        if held_slots > high:
            return high
        if held_slots > low and random_value < YIELD_PROBABILITY:
            return low
        return max(held_slots, min(low, desired))
    if held_slots < high:
        return max(held_slots, min(desired, high, held_slots + free_slots))
    return max(held_slots, min(desired, held_slots + free_slots - max(1, limit // RESERVE_DIVISOR)))


def _fair_range(limit: int, processes: int, step: int) -> tuple[int, int]:
    """What every process may have, and what some may: the limit in steps, of which some are left over."""
    if processes <= 1:
        return limit, limit
    steps_each, remainder = divmod(limit // step, processes)
    return steps_each * step, (steps_each + (remainder > 0)) * step


def step_size(limit: int) -> int:
    """The smallest piece of a limit that is worth a lease."""
    return max(1, limit // STEPS_PER_LIMIT)


def split_into_leases(slots: int, limit: int) -> list[int]:
    """The sizes in which to take so many slots: ever smaller, so that nearly any part can be given back."""
    sizes = []
    max_size = max(step_size(limit), limit // MIN_LEASES_PER_LIMIT)
    while slots > 0:
        sizes.append(min(slots, max_size, max(step_size(limit), (slots + 1) // 2)))
        slots -= sizes[-1]
    return sizes


def choose_leases(sizes: Sequence[int], slots: int) -> list[int]:
    """The places of those pieces that together make as much of so many slots as can be, and no more."""
    chosen_indexes = []
    for index in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        if sizes[index] <= slots:
            chosen_indexes.append(index)
            slots -= sizes[index]
    return chosen_indexes

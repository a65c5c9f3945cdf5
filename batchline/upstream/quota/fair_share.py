"""Computes this process's fair share of a limit that several processes use. Pure functions.

Each process decides for itself at every poll, from numbers that all can read: the limit, how many of its slots are
taken, and how many processes have work. The processes need no messages to each other.
"""

from collections.abc import Sequence
from typing import Final

STEPS_PER_LIMIT: Final = 64
"""Leases are at least this part of the limit, so shares are exact to about that part."""

MIN_LEASES_PER_LIMIT: Final = 8
"""Leases are at most this part of the limit, so that slots can move between processes in small steps."""

RESERVE_DIVISOR: Final = 32
"""Above its fair share a process leaves this part of the limit free; if it is taken, others need slots."""

SHRINK_DIVISOR: Final = 8
"""A share is kept if it exceeds the demand by less than this part of itself, which avoids oscillation."""

YIELD_PROBABILITY: Final = 0.1
"""Probability per poll that a process yields the remainder above the equal share to another process."""


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
    """Return the number of slots that this process should hold.

    `taken_slots` are held by all processes, `processes` have work, both including this one. `desired` could be
    used; fewer than `minimum` are useless, if a request costs more tokens than a fair share. `random_value` is
    drawn anew for each poll, from 0 to 1.
    """
    if limit < 1:
        return 0
    minimum = min(max(1, minimum), limit)
    desired, free_slots = min(limit, desired), limit - taken_slots
    # The equal share of every process, in whole steps, and that share plus one step, which some can have.
    step = max(minimum, step_size(limit))
    steps_each, remainder = divmod(limit // step, processes)
    low, high = (steps_each * step, (steps_each + (remainder > 0)) * step) if processes > 1 else (limit, limit)
    if desired < held_slots - held_slots // SHRINK_DIVISOR:
        return min(desired, high) if free_slots <= 0 else desired
    target = _target_if_busy(limit, free_slots, held_slots, desired, low, high, random_value)
    if target >= minimum or target == 0:
        return target
    if held_slots + free_slots >= minimum:
        return minimum
    # Too few for the next request: sometimes release all, else several such processes would wait forever.
    return 0 if random_value < YIELD_PROBABILITY else min(target, max(1, limit // processes))


def _target_if_busy(
    limit: int, free_slots: int, held_slots: int, desired: int, low: int, high: int, random_value: float
) -> int:
    """Return the target of a process that can use the slots it holds."""
    if free_slots <= 0:
        if held_slots > high:
            return high
        if held_slots > low and random_value < YIELD_PROBABILITY:
            return low
        return max(held_slots, min(low, desired))
    if held_slots < high:
        return max(held_slots, min(desired, high, held_slots + free_slots))
    return max(held_slots, min(desired, held_slots + free_slots - max(1, limit // RESERVE_DIVISOR)))


def step_size(limit: int) -> int:
    """Return the size of the smallest lease of a limit."""
    return max(1, limit // STEPS_PER_LIMIT)


def split_into_leases(slots: int, limit: int) -> list[int]:
    """Return the sizes of leases for the slots: decreasing, so that nearly any number can be released."""
    sizes = []
    max_size = max(step_size(limit), limit // MIN_LEASES_PER_LIMIT)
    while slots > 0:
        sizes.append(min(slots, max_size, max(step_size(limit), (slots + 1) // 2)))
        slots -= sizes[-1]
    return sizes


def choose_leases(sizes: Sequence[int], slots: int) -> list[int]:
    """Return the indexes of leases to release, largest first, whose total is at most `slots`."""
    chosen_indexes = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] <= slots:
            chosen_indexes.append(index)
            slots -= sizes[index]
    return chosen_indexes

"""Waiting for what comes about: the longer it takes, the more rarely it is asked: asking takes CPU from it."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 60.0


def until(
    condition: Callable[[], T],
    timeout_s: float = TIMEOUT_S,
    *,
    every_s: float | None = None,
    max_pause_s: float = 0.1,
) -> T:
    """Wait until the condition is true and return its value; fail after the timeout.

    It is asked every `every_s`, or, without, after pauses that grow to `most_s`.
    """
    for pause_s in pauses(timeout_s, max_pause_s):
        found = condition()
        if found:
            return found
        time.sleep(pause_s if every_s is None else every_s)
    raise AssertionError(f"it never came about in {timeout_s:g} s")


def pauses(timeout_s: float, max_pause_s: float) -> Iterator[float]:
    """Seconds to pause for, again and again until the patience has ended: a tenth of what has passed, or so."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < timeout_s:
        yield min(max_pause_s, max(0.005, passed / 10))

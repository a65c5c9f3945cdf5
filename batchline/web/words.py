"""Words and formats of the pages that the report does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from batchline.models.formatting import day, lines, size, span

STATES: Final = {"validating": "Checking", "in_progress": "In progress", "finalizing": "Writing files"}


def state(status: str) -> str:
    """Return a status in a word or two."""
    return STATES.get(status, status.capitalize())


def until(at: float, now: float) -> str:
    """Return the time left until `at`, or since then."""
    left = at - now
    return f"{span(left)} left" if left > 0 else f"over by {span(-left)}"


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "day": day,
    "shown": lines,
    "size": size,
    "state": state,
    "until": until,
}

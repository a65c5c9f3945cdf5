"""Words, sizes and times beyond those of the report, as the pages show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from batchline.steps.report.words import NOTHING, span

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What has no look of its own, or could turn the order of the words around."""

STATES: Final = {"validating": "Checking", "in_progress": "In progress", "finalizing": "Writing files"}


def state(status: str) -> str:
    """A status in a word or two."""
    return STATES.get(status, status.capitalize())


def size(length: int) -> str:
    """A number of bytes in a unit of its size."""
    value = float(length)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:,.1f} GB"


def day(at: float) -> str:
    """Date and time of day of Unix seconds, as short as a table needs it."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%-d %b %Y, %H:%M")
    except (OverflowError, OSError, ValueError):
        return NOTHING


def until(at: float, now: float) -> str:
    """How long until then, or since."""
    left = at - now
    return f"{span(left)} left" if left > 0 else f"over by {span(-left)}"


def shown(text: str) -> str:
    """Somebody's text with its lines as they are; what cannot be seen is made to be seen."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "day": day,
    "shown": shown,
    "size": size,
    "state": state,
    "until": until,
}

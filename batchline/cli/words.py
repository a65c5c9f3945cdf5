"""Times, sizes, costs and foreign text as people read them."""

import re
from decimal import Decimal

from rich.text import Text

from batchline.models.status import TERMINAL
from batchline.steps.meter import span
from batchline.storage.records import BatchRecord

COST_PLACES = Decimal("0.0001")
UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
"""What could steer a terminal, or turn the order of the words around."""


def plain(text: str) -> Text:
    """Somebody's text, which is shown as it is: no markup, no control characters."""
    return Text(CONTROLS.sub(" ", text))


def roughly(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in UNITS_S:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def took(batch: BatchRecord, now: float) -> str:
    """How long the batch's sending took, or has taken so far."""
    if batch.in_progress_at is None:
        return ""
    until = batch.ended_at if batch.status in TERMINAL else now
    return span(max(0.0, until - batch.in_progress_at))


def cost(amount: str, currency: str) -> str:
    """The cost in few places; small ones are not made nothing of."""
    exact = Decimal(amount)
    short = exact.quantize(COST_PLACES)
    figure = f"{short:,f}" if short or not exact else f"<{COST_PLACES:f}"
    return f"{figure} {currency}".rstrip()


def one_line(values: tuple[object, ...]) -> str:
    """The values behind each other, without those that are empty."""
    return " · ".join(str(value) for value in values if value)

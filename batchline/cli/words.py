"""Formatting shared by several commands."""

from rich.text import Text

from batchline.models import formatting
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.records.store import BatchRecord


def plain(text: str) -> Text:
    """Return foreign text for literal display: no markup, no control characters."""
    return Text(formatting.one_line(text))


def took(batch: BatchRecord, now: float) -> str:
    """Return the duration of the batch's sending, so far if it has not ended."""
    if batch.in_progress_at is None:
        return ""
    until = batch.ended_at if batch.status in TERMINAL_STATUSES else now
    return formatting.span(max(0.0, until - batch.in_progress_at))


def joined(values: tuple[object, ...]) -> str:
    """Join the values that are not empty."""
    return " · ".join(str(value) for value in values if value)

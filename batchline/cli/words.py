"""Words of several commands."""

from rich.text import Text

from batchline.models import formatting
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.records.store import BatchRecord


def plain(text: str) -> Text:
    """Somebody's text, which is shown as it is: no markup, no control characters."""
    return Text(formatting.one_line(text))


def took(batch: BatchRecord, now: float) -> str:
    """How long the batch's sending took, or has taken so far."""
    if batch.in_progress_at is None:
        return ""
    until = batch.ended_at if batch.status in TERMINAL_STATUSES else now
    return formatting.span(max(0.0, until - batch.in_progress_at))


def joined(values: tuple[object, ...]) -> str:
    """The values behind each other, without those that are empty."""
    return " · ".join(str(value) for value in values if value)

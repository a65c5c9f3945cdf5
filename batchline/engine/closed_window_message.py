"""The notice that a batch is continued after its completion window has closed."""

from datetime import UTC, datetime

from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord


def closed_window_message(batch: BatchRecord, settings: Settings, *, now: float) -> str | None:
    """Return a notice about continuing a batch whose window has closed, or None if the window is open."""
    is_open = batch.status in {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}
    if not is_open or batch.pause is not None or now < batch.expires_at:
        return None
    closing_note = (
        f"its completion window closed at {datetime.fromtimestamp(batch.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
    )
    if settings.run_past_window:
        return f"{closing_note}; it runs anyway, because BATCHLINE_RUN_PAST_WINDOW is set"
    settled_count = batch.completed + batch.failed
    return (
        f"{closing_note}: nothing more is sent, and it ends as expired with {settled_count:,} of {batch.total:,} "
        f"requests settled; to send the others afterwards: batchline batches retry {batch.id}"
    )

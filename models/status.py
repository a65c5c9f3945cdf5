"""The states of a batch, the legal transitions between them, and the timestamp that each state sets."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class BatchStatus(StrEnum):
    """The state of a batch; the values are those of OpenAI's Batch API."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


TERMINAL_STATUSES: Final = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)
ACTIVE_STATUSES: Final = frozenset(BatchStatus) - TERMINAL_STATUSES

TRANSITIONS: Final[Mapping[BatchStatus, frozenset[BatchStatus]]] = {
    BatchStatus.VALIDATING: frozenset(
        {
            BatchStatus.IN_PROGRESS,
            BatchStatus.FAILED,
            BatchStatus.EXPIRED,
            BatchStatus.CANCELLING,
            BatchStatus.CANCELLED,
        }
    ),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    **dict.fromkeys(TERMINAL_STATUSES, frozenset({BatchStatus.IN_PROGRESS})),
}
"""For each state, the states that may follow; only a retry leaves a terminal state."""


def allowed_from(target: BatchStatus) -> frozenset[BatchStatus]:
    """Return the states from which a batch may change to `target`."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


def timestamp_field(status: BatchStatus) -> str | None:
    """Return the `BatchResponse` field that is set on entering the state; None for `validating`."""
    return None if status is BatchStatus.VALIDATING else f"{status}_at"


def final_status(*, completed: int, expired: bool, cancelled: bool) -> BatchStatus:
    """Return the terminal state of a batch whose requests are all settled.

    A cancelled or expired batch stays so even if requests succeeded. Otherwise one success is enough for
    `completed`.
    """
    if cancelled:
        return BatchStatus.CANCELLED
    if expired:
        return BatchStatus.EXPIRED
    return BatchStatus.COMPLETED if completed else BatchStatus.FAILED

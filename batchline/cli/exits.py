"""The exit statuses of `batchline run`, which programs depend on."""

from enum import IntEnum

from batchline.models.batches import BatchResponse
from batchline.models.errors import BatchlineError, Interrupted, LeaseLost, StorageFault
from batchline.models.status import BatchStatus

STATUSES = (
    "Exit status: 0 all requests succeeded, 3 some failed, 4 none succeeded, 5 cancelled or expired, 2 bad usage "
    "or an input that does not validate, 6 stopped by a fault or by Ctrl-C (go on with --resume)."
)


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    BAD_INPUT = 2
    SOME_FAILED = 3
    NONE_SUCCEEDED = 4
    CANCELLED_OR_EXPIRED = 5
    STOPPED = 6


def exit_of_batch(batch: BatchResponse) -> Exit:
    """The status for a batch that `run` took to its end; one that is not over was stopped."""
    if batch.status is BatchStatus.COMPLETED:
        counts = batch.request_counts
        return Exit.SOME_FAILED if counts.completed < counts.total else Exit.OK
    if batch.status is BatchStatus.FAILED:
        return Exit.NONE_SUCCEEDED if batch.request_counts.total else Exit.BAD_INPUT
    if batch.status in {BatchStatus.CANCELLED, BatchStatus.EXPIRED}:
        return Exit.CANCELLED_OR_EXPIRED
    return Exit.STOPPED


def exit_of_error(error: BatchlineError) -> Exit:
    """The status for an error: a fault of ours leaves something to resume, all else is the caller's to mend."""
    return Exit.STOPPED if isinstance(error, Interrupted | LeaseLost | StorageFault) else Exit.BAD_INPUT

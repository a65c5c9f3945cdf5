"""Exit statuses of the commands, which scripts depend on."""

from enum import IntEnum

from batchline.client import BatchRecord
from batchline.models.errors import BatchlineError, Interrupted, LeaseLost, StorageFault
from batchline.models.status import BatchStatus

EXIT_CODES_HELP = (
    "Exit status: 0 all requests succeeded, 3 some failed, 4 none succeeded, 5 cancelled or expired, 2 bad usage "
    "or an invalid input, 6 stopped by a fault or by Ctrl-C, 7 paused (continue with --resume)."
)


class ExitCode(IntEnum):
    """Exit status of a command."""

    OK = 0
    BAD_INPUT = 2
    SOME_FAILED = 3
    NONE_SUCCEEDED = 4
    CANCELLED_OR_EXPIRED = 5
    STOPPED = 6
    PAUSED = 7


def exit_code_of_batch(batch: BatchRecord) -> ExitCode:
    """Return the status for a batch after `run`; one that has not ended was paused or stopped."""
    if batch.pause is not None:
        return ExitCode.PAUSED
    if batch.status is BatchStatus.COMPLETED:
        return ExitCode.SOME_FAILED if batch.completed < batch.total else ExitCode.OK
    if batch.status is BatchStatus.FAILED:
        return ExitCode.NONE_SUCCEEDED if batch.total else ExitCode.BAD_INPUT
    if batch.status in {BatchStatus.CANCELLED, BatchStatus.EXPIRED}:
        return ExitCode.CANCELLED_OR_EXPIRED
    return ExitCode.STOPPED


def exit_code_of_error(error: BatchlineError) -> ExitCode:
    """Return the status for an error: `STOPPED` if the batch can be resumed, else `BAD_INPUT`."""
    return ExitCode.STOPPED if isinstance(error, Interrupted | LeaseLost | StorageFault) else ExitCode.BAD_INPUT

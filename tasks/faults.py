"""Which failures of a task are worth another try by Prefect."""

from typing import Any, Final

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from batchline.models.errors import StorageFault

RETRIES: Final = 2
RETRY_DELAYS_S: Final[list[float]] = [3, 20]
"""Longer than storage is away for a moment; where it is away for longer, the batch waits to be resumed."""


def is_storage_fault(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the task failed for storage; what it has done so far stays, and a repetition goes on from there."""
    del task, run
    return isinstance(state.result(raise_on_failure=False), StorageFault)

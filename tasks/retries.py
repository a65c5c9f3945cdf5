"""A step of a batch as a task: its options, and which of its failures are worth another try by Prefect."""

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from batchline.models.errors import StorageFault

P = ParamSpec("P")
R = TypeVar("R")
RETRIES: Final = 2
RETRY_DELAYS_S: Final[list[float]] = [3, 20]
"""Longer than storage is away for a moment; where it is away for longer, the batch waits to be resumed."""


def is_storage_fault(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """True if the task failed for storage; what it has done so far stays, and a repetition goes on from there."""
    return isinstance(state.result(raise_on_failure=False), StorageFault)


def step(name: str, task_run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make the function of a step a task."""
    return task(
        name=name,
        task_run_name=task_run_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=is_storage_fault,
    )

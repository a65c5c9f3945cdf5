"""Defines the options of the steps' Prefect tasks, and the failures after which Prefect retries them."""

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
"""Long enough for a short storage outage; after a longer one the batch has to be resumed."""


def is_storage_fault(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return True if storage failed; finished work is kept, and a retry continues from there."""
    return isinstance(state.result(raise_on_failure=False), StorageFault)


def step(name: str, task_run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator that makes a step's function a Prefect task."""
    return task(
        name=name,
        task_run_name=task_run_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=is_storage_fault,
    )

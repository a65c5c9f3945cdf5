"""Where a batch's chunks are sent: threads of the flow's own process, or other processes and machines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from batchline.models.errors import InvalidInput
from batchline.models.plan import OPEN_CHUNKS
from batchline.models.settings import Settings

LEAST_OPEN: Final = 2
"""Chunks that a process sends at once: one more than one, so that the slow end of one is not idled away."""


CONNECT_S: Final = 10.0
WORKERS_S: Final = 60.0
"""For a cluster's first worker to appear."""

FIGURES_AT: Final = "127.0.0.1:0"
"""Where a Dask cluster of our own serves its figures; by default all clusters of a machine want the same port."""


@contextmanager
def task_runner(settings: Settings) -> Iterator[TaskRunner[Any] | None]:
    """The started runner of tasks that the settings name; none where it is the flow's own, of threads.

    Raises `InvalidInput` where it is not installed or cannot be reached.
    """
    make = _RUNNERS.get(settings.task_runner)
    if make is None:
        yield None
        return
    with make(settings) as runner:
        yield runner


def chunks_go_to(settings: Settings) -> str:
    """What sends a batch's chunks, in words."""
    if settings.task_runner_address:
        return f"chunks go to the {settings.task_runner.capitalize()} cluster at {settings.task_runner_address}"
    through = "" if settings.task_runner == "processes" else f" of {settings.task_runner.capitalize()}"
    return f"chunks go to {settings.senders} processes{through} on this machine"


def _processes(settings: Settings) -> TaskRunner[Any]:
    return ProcessPoolTaskRunner(max_workers=settings.senders)


def _dask(settings: Settings) -> TaskRunner[Any]:
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415 - not every installation has it
    except ImportError:
        raise _missing("dask") from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if settings.task_runner_address:
        return _reached(
            DaskTaskRunner(address=settings.task_runner_address, client_kwargs={"timeout": CONNECT_S}), settings
        )
    cluster = {
        "n_workers": settings.senders,
        "threads_per_worker": max(LEAST_OPEN, OPEN_CHUNKS // settings.senders),
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard_address": FIGURES_AT},
        "memory_limit": 0,
        "silence_logs": logging.ERROR,
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def _reached(runner: Any, settings: Settings) -> TaskRunner[Any]:
    """The runner, once its cluster answers: later it would fail in the middle of the batch."""
    try:
        client = runner.client
        client.wait_for_workers(1, timeout=WORKERS_S)
    except (OSError, TimeoutError) as error:
        raise InvalidInput(
            f"the Dask cluster at {settings.task_runner_address} has no worker to send: {error}; is it running?",
            param="task_runner_address",
        ) from None
    started: TaskRunner[Any] = runner
    return started


def _ray(settings: Settings) -> TaskRunner[Any]:
    try:
        import ray  # noqa: F401, PLC0415 - as above
        from prefect_ray.task_runners import RayTaskRunner  # noqa: PLC0415 - as above
    except ImportError:
        raise _missing("ray") from None
    if settings.task_runner_address:
        runner: TaskRunner[Any] = RayTaskRunner(address=settings.task_runner_address)
        return runner
    here: dict[str, Any] = {"num_cpus": settings.senders, "include_dashboard": False, "log_to_driver": False}
    local: TaskRunner[Any] = RayTaskRunner(init_kwargs=here)
    return local


def _missing(name: str) -> InvalidInput:
    return InvalidInput(
        f"task_runner is {name}, which is not installed: pip install 'batchline[{name}]'", param="task_runner"
    )


_RUNNERS: Final[Mapping[str, Callable[[Settings], TaskRunner[Any]]]] = {
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}

"""Selects the task runner for a batch's chunks: threads, local processes, or a Dask or Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from batchline.models.errors import InvalidInput
from batchline.models.plan import MAX_OPEN_CHUNKS
from batchline.models.settings import Settings

MIN_OPEN_CHUNKS: Final = 2
"""Chunks in flight per process: two, so that the slow tail of one overlaps the next."""


CONNECT_TIMEOUT_S: Final = 10.0
FIRST_WORKER_TIMEOUT_S: Final = 60.0
"""Seconds to wait for a cluster's first worker."""

DASHBOARD_ADDRESS: Final = "127.0.0.1:0"
"""Dashboard address of a local Dask cluster: a free port, as all clusters share one default port."""


@contextmanager
def open_task_runner(settings: Settings) -> Iterator[TaskRunner[Any] | None]:
    """Yield the started task runner of the settings, or None for threads, the flow's own runner.

    Raises `InvalidInput` if it is not installed or cannot be reached.
    """
    create_runner = _RUNNER_FACTORIES.get(settings.task_runner)
    if create_runner is None:
        yield None
        return
    with create_runner(settings) as runner:
        yield runner


def describe_destination(settings: Settings) -> str:
    """Return a log message that names the destination of chunks."""
    if settings.task_runner_address:
        return f"chunks go to the {settings.task_runner.capitalize()} cluster at {settings.task_runner_address}"
    cluster_text = "" if settings.task_runner == "processes" else f" of {settings.task_runner.capitalize()}"
    return f"chunks go to {settings.sender_processes} processes{cluster_text} on this machine"


def _dask_runner(settings: Settings) -> Any:
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415 - not every installation has it
    except ImportError:
        raise _not_installed_error("dask") from None
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if settings.task_runner_address:
        runner: Any = DaskTaskRunner(
            address=settings.task_runner_address, client_kwargs={"timeout": CONNECT_TIMEOUT_S}
        )
        try:  # so that it does not fail in the middle of the batch
            runner.client.wait_for_workers(1, timeout=FIRST_WORKER_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise InvalidInput(
                f"the Dask cluster at {settings.task_runner_address} has no worker: {error}; is it running?",
                param="task_runner_address",
            ) from None
        return runner
    cluster = {
        "n_workers": settings.sender_processes,
        "threads_per_worker": max(MIN_OPEN_CHUNKS, MAX_OPEN_CHUNKS // settings.sender_processes),
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard_address": DASHBOARD_ADDRESS},
        # No limit: Dask would kill a worker that exceeds it in the middle of a chunk.
        "memory_limit": 0,
        "silence_logs": logging.ERROR,
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def _ray_runner(settings: Settings) -> Any:
    try:
        import ray  # noqa: F401, PLC0415 - as above
        from prefect_ray.task_runners import RayTaskRunner  # noqa: PLC0415 - as above
    except ImportError:
        raise _not_installed_error("ray") from None
    if settings.task_runner_address:
        return RayTaskRunner(address=settings.task_runner_address)
    options = {"num_cpus": settings.sender_processes, "include_dashboard": False, "log_to_driver": False}
    return RayTaskRunner(init_kwargs=options)


def _not_installed_error(name: str) -> InvalidInput:
    return InvalidInput(
        f"task_runner is {name}, which is not installed: pip install 'batchline[{name}]'", param="task_runner"
    )


_RUNNER_FACTORIES: Final[Mapping[str, Callable[[Settings], TaskRunner[Any]]]] = {
    "processes": lambda settings: ProcessPoolTaskRunner(max_workers=settings.sender_processes),
    "dask": _dask_runner,
    "ray": _ray_runner,
}

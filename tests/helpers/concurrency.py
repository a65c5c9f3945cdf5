"""Run the same work concurrently, in threads of this process or in processes of their own."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchline.models.errors import BatchlineError

TIMEOUT_S = 60.0
forking = multiprocessing.get_context("forkserver")
"""Makes processes that fork from one in which everything is loaded; to load it takes each two seconds."""
forking.set_forkserver_preload(
    [
        "helpers.kill_points",
        "helpers.storage_servers",
        "hypothesis",
        "pyarrow.parquet",
        "pandas",
        "alembic.command",
    ]
)

_start: Any = None
"""A process's barrier, which it is given when it starts."""


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in threads that start at the same moment; return each result or `BatchlineError`."""
    start = threading.Barrier(count)
    with ThreadPoolExecutor(max_workers=count) as pool:
        return list(pool.map(lambda number: _at_once(start, work, number), range(count)))


def in_processes(count: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """Run `work(number, *arguments)`, a top-level function of a module, in processes; return the results."""
    with forking.Pool(count, _remember, [forking.Barrier(count)]) as pool:
        found = pool.starmap(_in_process, [(work, number, *arguments) for number in range(count)], chunksize=1)
        pool.close()
        pool.join()
    return found


def _remember(start: Any) -> None:
    global _start  # noqa: PLW0603 - a pool's initializer has no other way to leave something behind
    _start = start


def _in_process(work: Callable[..., Any], number: int, *arguments: object) -> Any:
    return _at_once(_start, work, number, *arguments)


def _at_once(start: Any, work: Callable[..., Any], *arguments: object) -> Any:
    start.wait(TIMEOUT_S)
    try:
        return work(*arguments)
    except BatchlineError as error:
        return error

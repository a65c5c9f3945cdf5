"""The second step, mapped over chunks: send a chunk's requests."""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.tasks import Task

from batchline.models.errors import StorageFault
from batchline.steps.chunk import ChunkOrder, ChunkResult, send_chunk
from batchline.steps.hold import BatchHold, hold_of


def is_storage_fault(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed chunk is worth another try by Prefect; a request's own retries are inside it."""
    del task, run
    return isinstance(state.result(raise_on_failure=False), StorageFault)


@task(
    name="call",
    task_run_name="requests from line {order.chunk.first_line}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=is_storage_fault,
)
def call(order: ChunkOrder) -> ChunkResult:
    """Send the chunk and write its part; a repetition sends only what has no saved answer."""
    return send_chunk(order, hold_of(order))


def gathered(hold: BatchHold, futures: Sequence[PrefectFuture[ChunkResult]]) -> list[ChunkResult]:
    """The results of all chunks; the first that fails for good stops the others, and is raised at the end."""
    failure: BaseException | None = None
    results = []
    for future in as_completed(list(futures)):
        result = future.result(raise_on_failure=False)
        if isinstance(result, BaseException):
            failure = failure or result
            hold.interrupt(str(failure))
        else:
            results.append(result)
    if failure is not None:
        raise failure
    return results

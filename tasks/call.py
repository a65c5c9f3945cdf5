"""The second step, mapped over chunks: send a chunk's requests."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed

from batchline.steps.chunk import ChunkOrder, ChunkResult, send_chunk
from batchline.steps.hold import BatchHold, hold_of
from batchline.tasks.faults import RETRIES, RETRY_DELAYS_S, is_storage_fault


@task(
    name="call",
    task_run_name="{order.chunk.range}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_storage_fault,
)
def call(order: ChunkOrder) -> ChunkResult:
    """Send the chunk and write its part; a repetition sends only what has no saved answer."""
    result = send_chunk(order, hold_of(order))
    end = "" if result.finished else ", stopped before all was settled"
    get_run_logger().info("%s ok, %s failed%s", f"{result.completed:,}", f"{result.failed:,}", end)
    return result


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

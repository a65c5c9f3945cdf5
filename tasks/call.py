"""The second step, mapped over chunks: send a chunk's requests."""

from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from prefect import get_run_logger, unmapped
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture, as_completed

from batchline.models.errors import Interrupted
from batchline.orchestration.blocks import BlockNames
from batchline.orchestration.budgets import share_budgets
from batchline.orchestration.runners import chunks_go_to, task_runner
from batchline.steps.chunk import ChunkOrder, ChunkResult, Hold, send_chunk
from batchline.steps.engine import open_engine
from batchline.steps.hold import BatchHold, hold_of
from batchline.steps.joined import joined
from batchline.tasks.faults import step


@step(name="call", task_run_name="{order.chunk.range}")
def call(order: ChunkOrder, blocks: BlockNames) -> ChunkResult:
    """Send the chunk and write its part; a repetition sends only what has no saved answer."""
    with _hold(order, blocks) as hold:
        result = send_chunk(order, hold)
    end = "" if result.finished else ", stopped before all was settled"
    get_run_logger().info("%s ok, %s failed%s", f"{result.completed:,}", f"{result.failed:,}", end)
    return result


@contextmanager
def _hold(order: ChunkOrder, blocks: BlockNames) -> Iterator[Hold]:
    """This process's hold on the batch, or its part in the hold of another; that one's blocks are loaded here."""
    here = hold_of(order)
    if here is not None:
        yield here
        return
    engine = open_engine(blocks.settings())
    share_budgets(engine)
    with joined(engine, order) as hold:
        yield hold


def call_all(hold: BatchHold, orders: Sequence[ChunkOrder], blocks: BlockNames) -> list[ChunkResult]:
    """Send all chunks, where the settings say; the first that fails for good stops the others, and is raised."""
    if not orders:
        return []
    with task_runner(hold.engine.settings) as runner:
        if runner is None:
            return _gathered(hold, call.map(orders, unmapped(blocks)))
        get_run_logger().info("%s", chunks_go_to(hold.engine.settings))
        hold.share()
        results = _gathered(hold, runner.map(call, {"order": orders, "blocks": unmapped(blocks)}))  # type: ignore[arg-type]
    hold.hear()
    return results


def _gathered(hold: BatchHold, futures: Sequence[PrefectFuture[ChunkResult]]) -> list[ChunkResult]:
    failure: BaseException | None = None
    results = []
    try:
        for future in as_completed(list(futures)):
            result = _result(future)
            if isinstance(result, BaseException):
                failure = failure or result
                hold.interrupt(str(failure))
            else:
                results.append(result)
    except (Pause, CancelledError):
        _stop(hold, futures)
        raise
    if failure is not None:
        raise failure
    return results


def _stop(hold: BatchHold, futures: Sequence[PrefectFuture[ChunkResult]]) -> None:
    """Stop sending and wait until every chunk has saved its answers.

    Prefect raises `Pause` in a suspended run as soon as a task begins or ends, while others still send, and
    `CancelledError` at any time in a run whose concurrency lease its server has forgotten.
    """
    hold.interrupt("Prefect stopped its flow run")
    for future in futures:
        with suppress(Pause, Exception):
            future.wait()


def _result(future: PrefectFuture[ChunkResult]) -> ChunkResult | BaseException:
    """The task's result, or what it or its process failed of."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 - each kind of task runner has its own for a process that died
        lost = Interrupted(f"a process that sent chunks was lost: {type(error).__name__}: {error}")
        lost.__cause__ = error
        return lost

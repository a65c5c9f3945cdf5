"""The same steps without Prefect: a batch in this process, its chunks on threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from batchline.models.plan import OPEN_CHUNKS
from batchline.models.status import TERMINAL
from batchline.steps.chunk import ChunkOrder, ChunkResult, send_chunk
from batchline.steps.engine import Engine
from batchline.steps.hold import BatchHold, hold_batch
from batchline.steps.lifecycle import check_settled, finish, finished_parts, measure, orders, settle, write
from batchline.steps.recovery import validate_or_recover
from batchline.storage.records import BatchRecord


def run_local(engine: Engine, batch_id: str) -> BatchRecord:
    """Run the batch to its end, or go on with it, and return its record; raises what the steps raise."""
    batch = engine.records.get_batch(batch_id)
    if batch.status in TERMINAL:
        return batch
    with hold_batch(engine, batch_id) as hold:
        return run_steps(hold, send_all=lambda orders: _send_all(hold, orders))


def _send_all(hold: BatchHold, orders: Sequence[ChunkOrder]) -> list[ChunkResult]:
    """Send the chunks, some at once; the first that fails stops the others, and is raised at the end."""
    failure: BaseException | None = None
    results = []
    with ThreadPoolExecutor(max_workers=OPEN_CHUNKS, thread_name_prefix="chunk") as pool:
        for future in as_completed([pool.submit(send_chunk, order, hold) for order in orders]):
            error = future.exception()
            if error is None:
                results.append(future.result())
            else:
                failure = failure or error
                hold.interrupt(str(failure))
    if failure is not None:
        raise failure
    return results


def run_steps(
    hold: BatchHold, *, send_all: Callable[[Sequence[ChunkOrder]], Sequence[ChunkResult]]
) -> BatchRecord:
    """Take a held batch to its end with plain function calls; `send_all` sends all chunks."""
    plan = validate_or_recover(hold)
    if plan is None:
        return hold.batch
    results = send_all(orders(hold, plan))
    check_settled(hold, plan, results)
    settle(hold)
    parts = finished_parts(hold, plan)
    analytics, report = measure(hold, parts)
    manifest = write(hold, parts, report)
    return finish(hold, manifest, analytics, report)

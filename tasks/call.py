"""The second step of a batch, mapped over chunks: sends a chunk's requests."""

from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from prefect import get_run_logger, unmapped
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture, as_completed

from batchline.engine.lease import BatchLease, lease_for
from batchline.engine.remote_sender import join_batch
from batchline.engine.services import open_services
from batchline.models.errors import Interrupted
from batchline.orchestration.blocks import BlockNames
from batchline.orchestration.quota_store import share_quotas
from batchline.orchestration.task_runners import describe_destination, open_task_runner
from batchline.steps.context import SendContext
from batchline.steps.send_chunk import ChunkResult, ChunkSpec, send_chunk
from batchline.tasks.retries import step


@step(name="call", task_run_name="{order.chunk.label}")
def call(order: ChunkSpec, blocks: BlockNames) -> ChunkResult:
    """Send the chunk and write its part; a repetition sends only requests without a saved answer."""
    with _open_context(order, blocks) as context:
        result = send_chunk(order, context)
    ending = "" if result.is_finished else ", stopped before all requests were settled"
    get_run_logger().info("%s ok, %s failed%s", f"{result.completed:,}", f"{result.failed:,}", ending)
    return result


@contextmanager
def _open_context(spec: ChunkSpec, blocks: BlockNames) -> Iterator[SendContext]:
    """Yield this process's lease on the batch or, in another process, join the batch with the blocks loaded."""
    lease = lease_for(spec)
    if lease is not None:
        yield lease
        return
    services = open_services(blocks.settings())
    share_quotas(services)
    with join_batch(services, spec) as context:
        yield context


def call_all_chunks(lease: BatchLease, specs: Sequence[ChunkSpec], blocks: BlockNames) -> list[ChunkResult]:
    """Send all chunks with the configured task runner; the first final failure stops the others and is raised."""
    if not specs:
        return []
    with open_task_runner(lease.services.settings) as runner:
        if runner is None:
            return _collect_results(lease, call.map(specs, unmapped(blocks)))
        get_run_logger().info("%s", describe_destination(lease.services.settings))
        lease.allow_remote_senders()
        results = _collect_results(lease, runner.map(call, {"order": specs, "blocks": unmapped(blocks)}))  # type: ignore[arg-type]
    lease.exchange_reports()
    return results


def _collect_results(lease: BatchLease, futures: Sequence[PrefectFuture[ChunkResult]]) -> list[ChunkResult]:
    """Return the chunks' results; after a failure the other chunks are stopped, and it is raised at the end."""
    failure: BaseException | None = None
    results = []
    try:
        for future in as_completed(list(futures)):
            result: ChunkResult | BaseException
            try:
                result = future.result(raise_on_failure=False)
            except Exception as error:  # noqa: BLE001 - each task runner has its own error for a process that died
                result = Interrupted(f"a process that sent chunks was lost: {type(error).__name__}: {error}")
                result.__cause__ = error
            if isinstance(result, BaseException):
                # Keep the first failure and still collect the rest: each chunk saves its answers before it ends.
                failure = failure or result
                lease.interrupt(str(failure))
            else:
                results.append(result)
    except (Pause, CancelledError):
        # Prefect raises `Pause` in a suspended run as soon as a task starts or ends, while others still send, and
        # `CancelledError` at any time in a run whose concurrency lease the server has lost. Every chunk must save
        # its answers before this process ends.
        lease.interrupt("Prefect stopped its flow run")
        for future in futures:
            with suppress(Pause, Exception):
                future.wait()
        raise
    if failure is not None:
        raise failure
    return results

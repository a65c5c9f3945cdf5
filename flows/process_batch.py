"""One batch as one flow run: validate, call chunk by chunk, aggregate, write."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, cast

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from batchline.models.batches import BatchDwExtResponse, BatchResponse, CreateBatchRequest
from batchline.models.errors import BatchEnded, InvalidInput
from batchline.models.plan import OPEN_CHUNKS
from batchline.models.status import TERMINAL, BatchStatus
from batchline.steps.engine import Engine, open_engine
from batchline.steps.hold import hold_batch
from batchline.steps.intake import create_batch, store_input_from
from batchline.steps.lifecycle import check_settled, finish, finished_parts, orders, settle
from batchline.storage.records import BatchRecord
from batchline.tasks.aggregate import aggregate
from batchline.tasks.call import call, gathered
from batchline.tasks.validate import validate
from batchline.tasks.write import write

_engine: ContextVar[Engine | None] = ContextVar("engine", default=None)


@contextmanager
def using_engine(engine: Engine) -> Iterator[None]:
    """Let flows that start inside work with that engine instead of the environment's."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


@flow(
    name="process-batch",
    task_runner=ThreadPoolTaskRunner(max_workers=OPEN_CHUNKS),  # type: ignore[arg-type]
    persist_result=False,
)
def process_batch(
    input_file_id: Annotated[str | None, Field(description="Id of an uploaded file of requests.")] = None,
    input_uri: Annotated[
        str | None, Field(description="Or where to read one: a path or s3:// address below an allowed root.")
    ] = None,
    endpoint: Annotated[
        str, Field(description="The endpoint of every request in the file.")
    ] = "/v1/chat/completions",
    completion_window: Annotated[str, Field(description="How long it may take: <n>m, <n>h or <n>d.")] = "24h",
    metadata: Annotated[dict[str, str] | None, Field(description="Up to 16 pairs of your own.")] = None,
    batch_id: Annotated[str | None, Field(description="A batch that exists, to go on with.")] = None,
) -> BatchResponse:
    """Run a batch to its end and return it; a batch that was interrupted goes on where its parts end.

    Takes one of `input_file_id`, `input_uri` and `batch_id`. A retry of the flow run goes on with the batch that
    it made. Raises `BatchEnded` when the batch ends other than `completed`, `InvalidInput` or `NotFound` for
    parameters that cannot be used, `Conflict` while another run has the batch, and `Interrupted` or
    `StorageFault` when it stopped for a fault of ours: run it again.
    """
    engine = _engine.get() or open_engine()
    batch = _batch(engine, input_file_id, input_uri, endpoint, completion_window, metadata, batch_id)
    _name_run(batch)
    if batch.status in TERMINAL:
        return _final_state(batch)
    with hold_batch(engine, batch.id) as hold:
        plan = validate(hold)
        if plan is not None:
            check_settled(hold, plan, gathered(hold, call.map(orders(hold, plan))))
            settle(hold)
            parts = finished_parts(hold, plan)
            analytics, report = aggregate(hold, parts)
            finish(hold, write(hold, parts, report), analytics, report)
    return _final_state(hold.batch)


def _batch(
    engine: Engine,
    input_file_id: str | None,
    input_uri: str | None,
    endpoint: str,
    completion_window: str,
    metadata: dict[str, str] | None,
    batch_id: str | None,
) -> BatchRecord:
    """The batch to run: the one named, the one that this flow run made before, or a new one."""
    if batch_id is not None:
        return engine.records.get_batch(batch_id)
    run_id = flow_run.id
    known = engine.records.batch_of_flow_run(run_id) if run_id else None
    if known is not None:
        return known
    if (input_file_id is None) == (input_uri is None):
        raise InvalidInput(
            "give the batch's input as one of input_file_id and input_uri (or batch_id to go on with a batch)",
            param="input_file_id",
        )
    request = CreateBatchRequest(
        input_file_id=input_file_id or store_input_from(engine, str(input_uri)).id,
        endpoint=endpoint,
        completion_window=completion_window,
        metadata=metadata,
    )
    origin = BatchDwExtResponse(source="deployment" if deployment.id else "api")
    return create_batch(engine, request, origin=origin, flow_run_id=run_id)


def _name_run(batch: BatchRecord) -> None:
    """Name the flow run after its batch."""
    if flow_run.id and flow_run.name != batch.id:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=batch.id)


def _final_state(batch: BatchRecord) -> BatchResponse:
    """The flow run's state for a batch that is over, with counts and reasons in its message.

    Prefect takes a returned state for the run's own, and gives the caller what the state holds.
    """
    message = outcome_message(batch)
    get_run_logger().info("%s %s", batch.id, message)
    if batch.status is BatchStatus.COMPLETED:
        return cast("BatchResponse", Completed(message=message, data=batch.to_response(include_analytics=True)))
    ended = BatchEnded(f"batch {batch.id} {message}", batch_id=batch.id, status=batch.status)
    kind = Cancelled if batch.status is BatchStatus.CANCELLED else Failed
    return cast("BatchResponse", kind(message=message, data=ended))


def outcome_message(batch: BatchRecord) -> str:
    """How a batch ended, in one line for people."""
    if batch.errors:
        more = f" (and {len(batch.errors) - 1} more)" if len(batch.errors) > 1 else ""
        first = batch.errors[0]
        where = f"line {first.line}: " if first.line else ""
        return f"{batch.status}: {where}{first.message}{more}"
    return f"{batch.status}: {batch.completed:,} ok, {batch.failed:,} failed of {batch.total:,}"

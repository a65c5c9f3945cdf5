"""One batch as one flow run: validate, call chunk by chunk, aggregate, write."""

import time
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.runtime import deployment, flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from batchline.models.batches import BatchDwExtResponse, BatchResponse, CreateBatchRequest
from batchline.models.errors import BatchlineError, Interrupted, InvalidInput
from batchline.models.plan import OPEN_CHUNKS, Plan
from batchline.models.status import TERMINAL
from batchline.orchestration import forms
from batchline.orchestration.announcing import announce
from batchline.orchestration.artifacts import show_end
from batchline.orchestration.blocks import BlockNames
from batchline.orchestration.budgets import share_budgets
from batchline.orchestration.crashes import batch_of_crash
from batchline.orchestration.events import emit, report_stopped
from batchline.orchestration.lease_storage import warn_of_lost_leases
from batchline.orchestration.outcome import LABEL, final_state, outcome_message, run_name
from batchline.orchestration.run_log import tell_errors_plainly
from batchline.orchestration.subflows import key_of_call
from batchline.orchestration.supervision import supervised
from batchline.steps.engine import Engine, engine_in_use, open_engine, using_engine
from batchline.steps.hold import BatchHold, hold_batch, wait_for_lease
from batchline.steps.intake import create_batch, store_input_from
from batchline.steps.lifecycle import check_settled, finish, finished_parts, orders, settle
from batchline.steps.reports import report_of
from batchline.steps.windows import closed_window_notice
from batchline.storage.records import BatchRecord, Doomed
from batchline.tasks.aggregate import aggregate
from batchline.tasks.call import call_all
from batchline.tasks.validate import validate
from batchline.tasks.write import write


@flow(
    name="process-batch",
    task_runner=ThreadPoolTaskRunner(max_workers=OPEN_CHUNKS),  # type: ignore[arg-type]
    persist_result=True,
    on_completion=[report_stopped],
    on_failure=[report_stopped],
)
def process_batch(
    input_uri: forms.Text = "",
    endpoint: forms.Endpoint = "/v1/chat/completions",
    completion_window: forms.Window = "24h",
    metadata: forms.Metadata = forms.NO_METADATA,
    input_file_id: forms.Text = "",
    batch_id: forms.Text = "",
    crashed_run: forms.Text = "",
    upstreams: forms.Names = forms.NO_NAMES,
    storage: forms.Text = "",
) -> BatchResponse:
    """Run an OpenAI-format batch file to its end, or go on with a batch where its saved answers end.

    Args:
        input_uri: The file of requests: a path or an s3:// address, below a root that the settings allow.
        endpoint: The endpoint of every request in the file.
        completion_window: How long the batch may take; what is not answered by then is given up.
        metadata: Up to 16 pairs of your own, as JSON, such as {"team": "search"}.
        input_file_id: Instead of the file of requests: the id of one that was uploaded, file-…
        batch_id: Instead: the id of a batch that exists, to go on with it, batch-…
        crashed_run: Instead: the id of a flow run that crashed, to go on with its batch.
        upstreams: Names of batchline-upstream blocks to send to; else what the environment says.
        storage: Name of a batchline-storage block; else what the environment says.

    A retry of the flow run goes on with the batch that it made, and so does a retry of the flow that called this
    one with the same input and options. Raises `BatchEnded` when the batch ends other than `completed`,
    `InvalidInput` or `NotFound` for parameters that cannot be used, `Conflict` while another run has the batch,
    and `Interrupted` or `StorageFault` when it stopped for a fault of ours: run it again.
    """
    tell_errors_plainly()
    blocks = BlockNames(upstreams=tuple(name for name in upstreams or () if name), storage=storage or None)
    engine = engine_in_use() or open_engine(blocks.settings())
    if crashed_run:
        batch_id = batch_of_crash(engine, crashed_run).id
    batch = _batch(engine, blocks, input_uri, input_file_id, endpoint, completion_window, metadata, batch_id)
    _name_run(batch)
    if batch.status in TERMINAL:
        return _ended(engine, batch)
    share_budgets(engine)
    warn_of_lost_leases(get_run_logger())
    # A run that is resumed soon after it was suspended begins while its former process still stops.
    is_stopping = batch.last_flow_run_id == str(flow_run.id)
    wait_for_lease(engine, batch, get_run_logger().info, is_stopping=is_stopping)
    if notice := closed_window_notice(batch, engine.settings, now=time.time()):
        get_run_logger().warning("%s: %s", batch.id, notice)
    with hold_batch(engine, batch.id) as hold, supervised(hold):
        _note_run(hold)
        plan = _plan(hold)
        if plan is not None:
            _tell_beginning(hold, plan)
            check_settled(hold, plan, call_all(hold, orders(hold, plan), blocks))
            settle(hold)
            parts = finished_parts(hold, plan)
            analytics, report = aggregate(hold, parts)
            finish(hold, write(hold, parts, report), analytics, report)
    return _ended(engine, hold.batch)


def run_batch(engine: Engine, batch_id: str) -> None:
    """Run the flow for the batch in this process; raises `BatchEnded` or what stopped it, as the flow does.

    What else ends the flow run is raised as `Interrupted`.
    """
    with using_engine(engine):
        try:
            state = process_batch(batch_id=batch_id, return_state=True)
        except Pause as pause:
            raise Interrupted("the flow run was paused in Prefect; answers are saved") from pause
    result = state.result(raise_on_failure=False)
    if isinstance(result, BatchlineError):
        raise result
    if isinstance(result, BaseException):
        raise Interrupted(f"the flow run ended {state.name}: {result}") from result


def _batch(
    engine: Engine,
    blocks: BlockNames,
    input_uri: str | None,
    input_file_id: str | None,
    endpoint: str,
    completion_window: str,
    metadata: dict[str, str] | None,
    batch_id: str | None,
) -> BatchRecord:
    """Return the batch to run: the one named, the one that this run or call made before, or a new one."""
    if batch_id:
        return engine.records.get_batch(batch_id)
    run_id = flow_run.id
    known = engine.records.batch_of_flow_run(run_id) if run_id else None
    if known is not None:
        return known
    if bool(input_file_id) == bool(input_uri):
        raise InvalidInput(
            "give the batch's input as one of input_file_id and input_uri (or batch_id to go on with a batch)",
            param="input_file_id",
        )
    file = engine.records.get_file(input_file_id) if input_file_id else store_input_from(engine, str(input_uri))
    request = CreateBatchRequest(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window=completion_window,
        metadata=metadata or None,
    )
    key = key_of_call(file, request, blocks)
    known = None if key is None else engine.records.batch_of_key(key)
    if known is not None:
        get_run_logger().info("this call of the flow made %s in an earlier attempt", known.id)
        if input_uri:  # it was read in once more to see that it is the same
            engine.records.delete_file(file.id, doomed_with_it=[Doomed(prefix=file.key, due_at=0)])
        return known
    origin = BatchDwExtResponse(source="deployment" if deployment.id else "api")
    batch = create_batch(engine, request, origin=origin, flow_run_id=run_id, idempotency=key)
    emit("created", batch)
    return batch


def _plan(hold: BatchHold) -> Plan | None:
    """Return the batch's plan, or None if the batch is over: its record then says how it ended."""
    found = validate(hold)
    # Prefect passes a state that a task returned on to its caller.
    return found if isinstance(found, Plan) else None


def _name_run(batch: BatchRecord) -> None:
    """Name the flow run after file and batch, and label it with the batch's id for those who started it."""
    if not flow_run.id:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(str(flow_run.id)), {LABEL: batch.id})
        if flow_run.name != run_name(batch):
            client.update_flow_run(UUID(str(flow_run.id)), name=run_name(batch))


def _note_run(hold: BatchHold) -> None:
    """Note in the batch's record which flow run has it; one that was refused would hide the one that has."""
    if flow_run.id and hold.batch.last_flow_run_id != str(flow_run.id):
        hold.records.note_flow_run(hold.batch.id, str(flow_run.id))


def _tell_beginning(hold: BatchHold, plan: Plan) -> None:
    batch = hold.batch
    get_run_logger().info(
        "%s of %s: %s requests in %s chunks to %s",
        batch.id,
        batch.input_filename,
        f"{plan.total:,}",
        f"{len(plan.chunks):,}",
        ", ".join(sorted({hold.upstream_of(model) for model in plan.models})) or "the upstream",
    )
    emit("in_progress", batch, models=plan.models[:20])


def _ended(engine: Engine, batch: BatchRecord) -> BatchResponse:
    """Show and announce the end of the batch, and return the flow run's final state."""
    report = report_of(engine.store, batch.id)
    message = outcome_message(batch, report)
    get_run_logger().info("%s of %s %s", batch.id, batch.input_filename, message)
    show_end(engine, batch, report)
    announce(engine, batch, report)
    return final_state(batch, message)

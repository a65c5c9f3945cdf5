"""The flow that runs one batch, with the steps of `engine/pipeline.py` as Prefect tasks."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.runtime import deployment, flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from batchline.client import Batchline
from batchline.engine.closed_window_message import closed_window_message
from batchline.engine.lease import BatchLease, acquire_lease, wait_for_lease
from batchline.engine.pipeline import run, run_until_paused
from batchline.engine.services import Services, current_services, open_services, using_services
from batchline.models.batches import BatchResponse, CreateBatchRequest
from batchline.models.errors import BatchlineError, BatchPaused, Interrupted, InvalidInput
from batchline.models.plan import MAX_OPEN_CHUNKS, Plan
from batchline.models.status import TERMINAL_STATUSES
from batchline.orchestration import parameters
from batchline.orchestration.artifacts import publish_outcome
from batchline.orchestration.blocks import BlockNames
from batchline.orchestration.crashed_runs import batch_of_crashed_run
from batchline.orchestration.end_announcement import announce_end
from batchline.orchestration.events import emit_batch_event, report_stopped
from batchline.orchestration.final_state import BATCH_ID_LABEL, final_state, outcome_message, run_name
from batchline.orchestration.log_filter import install_log_filter
from batchline.orchestration.pause_in_prefect import is_asked_to_resume, paused_state, suspend_run
from batchline.orchestration.quota_store import share_quotas
from batchline.orchestration.run_monitor import monitor_run
from batchline.orchestration.setup import warn_of_memory_leases
from batchline.orchestration.subflows import idempotency_of_call
from batchline.report.report_data import report_of
from batchline.storage.records.store import BatchRecord
from batchline.tasks.aggregate import aggregate
from batchline.tasks.call import call_all_chunks
from batchline.tasks.validate import validate
from batchline.tasks.write import write


@flow(
    name="process-batch",
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_OPEN_CHUNKS),  # type: ignore[arg-type]
    persist_result=True,
    on_completion=[report_stopped],
    on_failure=[report_stopped],
)
def process_batch(
    input_uri: parameters.Text = "",
    endpoint: parameters.Endpoint = "/v1/chat/completions",
    completion_window: parameters.Window = "24h",
    metadata: parameters.Metadata = parameters.NO_METADATA,
    options: parameters.Options = parameters.NO_OPTIONS,
    input_file_id: parameters.Text = "",
    batch_id: parameters.Text = "",
    crashed_run: parameters.Text = "",
    upstreams: parameters.Names = parameters.NO_NAMES,
    storage: parameters.Text = "",
) -> BatchResponse:
    """Run an OpenAI-format batch file to its end, or continue a batch from its saved answers.

    Args:
        input_uri: The input file: a path or an s3:// address below a root that the settings allow.
        endpoint: The endpoint of every request in the file.
        completion_window: The time that the batch may take; requests without an answer by then expire.
        metadata: Up to 16 pairs of your own, as JSON, such as {"team": "search"}.
        options: Rules for answers that are flawed, and for a batch that keeps failing.
        input_file_id: The id of an uploaded file (file-…), instead of the input file's address.
        batch_id: The id of an existing batch (batch-…) to continue, instead of an input file.
        crashed_run: The id of a crashed flow run whose batch to continue, instead of an input file.
        upstreams: Names of the batchline-upstream blocks to send to; by default the environment's settings apply.
        storage: Name of a batchline-storage block; by default the storage in the environment's settings.

    A retry of the flow run continues the batch that it created, and so does a retry of the flow that called this
    one with the same input and options. While its batch is paused, the run of a deployment is suspended; any other
    run ends in a state named Paused, and raises `BatchPaused` to a flow that called it. Raises `BatchEnded` if the
    batch ends other than `completed`, `InvalidInput` or `NotFound` for parameters that cannot be used, `Conflict`
    while another run has the batch, and `Interrupted` or `StorageFault` if the batch was stopped before its end:
    run it again.
    """
    install_log_filter()
    blocks = BlockNames(upstreams=tuple(name for name in upstreams or () if name), storage=storage or None)
    services = current_services() or open_services(blocks.settings())
    if crashed_run:
        batch_id = batch_of_crashed_run(services, crashed_run).id
    fields = {"endpoint": endpoint, "completion_window": completion_window, "metadata": metadata or None}
    batch = _find_or_create_batch(
        services, blocks, input_uri, input_file_id, batch_id, {**fields, "options": options}
    )
    _name_flow_run(batch)
    if batch.status in TERMINAL_STATUSES:
        return _finish_run(services, batch)
    batch = _end_pause_if_asked(services, batch, is_follow_up=bool(crashed_run))
    share_quotas(services)
    warn_of_memory_leases(get_run_logger())
    # A run that is resumed soon after it was suspended starts while its previous process is still stopping.
    is_stopping = batch.last_flow_run_id == str(flow_run.id)
    wait_for_lease(services, batch, get_run_logger().info, is_stopping=is_stopping)
    if notice := closed_window_message(batch, services.settings, now=time.time()):
        get_run_logger().warning("%s: %s", batch.id, notice)
    try:
        return _finish_run(services, run_until_paused(services, partial(_run_leased, services, batch.id, blocks)))
    except BatchPaused as paused:
        return _pause_run(services, paused)


def _run_leased(services: Services, batch_id: str, blocks: BlockNames) -> BatchRecord:
    with acquire_lease(services, batch_id) as lease, monitor_run(lease):
        # Only with the lease: a run that was refused must not hide the run that holds the batch.
        if flow_run.id and lease.batch.last_flow_run_id != str(flow_run.id):
            lease.records.record_flow_run(lease.batch.id, str(flow_run.id))
        return run(
            lease,
            validate=_validated_plan,
            send_all=lambda specs: call_all_chunks(lease, specs, blocks),
            aggregate=aggregate,
            write=write,
            on_start=partial(_log_start, lease),
        )


def run_batch(client: Batchline, batch_id: str) -> None:
    """Run the flow for the batch in this process; raises `BatchEnded` or the error that stopped it.

    Any other end of the flow run is raised as `Interrupted`.
    """
    with using_services(client.services):
        try:
            state = process_batch(batch_id=batch_id, return_state=True)
        except Pause as pause:
            raise Interrupted("the flow run was paused in Prefect; answers are saved") from pause
    result = state.result(raise_on_failure=False)
    if isinstance(result, BatchlineError):
        raise result
    if isinstance(result, BaseException):
        raise Interrupted(f"the flow run ended {state.name}: {result}") from result


def _find_or_create_batch(
    services: Services,
    blocks: BlockNames,
    input_uri: str | None,
    input_file_id: str | None,
    batch_id: str | None,
    fields: Mapping[str, Any],
) -> BatchRecord:
    """Return the batch to run: the one named, one created by this run or call before, or a new one."""
    if batch_id:
        return services.records.get_batch(batch_id)
    run_id = flow_run.id
    existing = services.records.find_batch_of_flow_run(run_id) if run_id else None
    if existing is not None:
        return existing
    if bool(input_file_id) == bool(input_uri):
        raise InvalidInput(
            "give the batch's input as one of input_file_id and input_uri (or batch_id to continue a batch)",
            param="input_file_id",
        )
    client = Batchline(services=services, origin="deployment" if deployment.id else "api")
    file = client.files.record(input_file_id or client.files.create_from_uri(str(input_uri)).id)
    request = CreateBatchRequest(input_file_id=file.id, **fields)
    idempotency = idempotency_of_call(file, request, blocks)
    created = client.batches.create(
        **request.model_dump(), idempotency_key=idempotency, flow_run_id=run_id, via=None
    )
    batch = services.records.get_batch(created.id)
    if batch.flow_run_id == run_id:
        emit_batch_event("created", batch)
        return batch
    get_run_logger().info("this call of the flow created %s in an earlier attempt", batch.id)
    if input_uri:  # delete the copy that was read only to compare its content
        client.files.delete(file.id)
    return batch


def _end_pause_if_asked(services: Services, batch: BatchRecord, *, is_follow_up: bool) -> BatchRecord:
    """End the batch's pause if a person started this run to resume it, and return the batch."""
    if batch.pause is None or not is_asked_to_resume(batch, is_follow_up=is_follow_up):
        return batch
    get_run_logger().info("%s is resumed after its pause: %s", batch.id, batch.pause.message)
    return services.records.resume(batch.id)


def _pause_run(services: Services, paused: BatchPaused) -> BatchResponse:
    """Suspend this flow run until the batch is resumed, or end it in a state named Paused if Prefect cannot.

    Raises Prefect's `Pause`, which ends the process and leaves the run suspended.
    """
    batch = services.records.get_batch(paused.batch_id)
    get_run_logger().info("%s; answers are saved", paused)
    emit_batch_event("paused", batch, code=paused.code)
    state = suspend_run(services, batch, str(flow_run.id)) if flow_run.id else None
    if state is not None:
        raise Pause(state=state)
    return cast("BatchResponse", paused_state(batch, paused))


def _validated_plan(lease: BatchLease) -> Plan | None:
    """Return the batch's plan, or None if the batch is over, with the outcome in its record."""
    plan = validate(lease)
    # The call returns the state itself if the task returned a state.
    return plan if isinstance(plan, Plan) else None


def _name_flow_run(batch: BatchRecord) -> None:
    """Name the flow run after file and batch, and label it with the batch's id."""
    if not flow_run.id:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(str(flow_run.id)), {BATCH_ID_LABEL: batch.id})
        if flow_run.name != run_name(batch):
            client.update_flow_run(UUID(str(flow_run.id)), name=run_name(batch))


def _log_start(lease: BatchLease, plan: Plan) -> None:
    batch = lease.batch
    get_run_logger().info(
        "%s of %s: %s requests in %s chunks to %s",
        batch.id,
        batch.input_filename,
        f"{plan.total:,}",
        f"{len(plan.chunks):,}",
        ", ".join(sorted({lease.find_upstream(model) for model in plan.models})) or "the upstream",
    )
    emit_batch_event("in_progress", batch, models=plan.models[:20])


def _finish_run(services: Services, batch: BatchRecord) -> BatchResponse:
    """Publish and announce the end of the batch, and return the flow run's final state."""
    report = report_of(services.store, batch.id)
    message = outcome_message(batch, report)
    get_run_logger().info("%s of %s %s", batch.id, batch.input_filename, message)
    publish_outcome(services, batch, report)
    announce_end(services, batch, report)
    return final_state(batch, message)

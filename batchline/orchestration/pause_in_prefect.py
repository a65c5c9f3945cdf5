"""Shows the pause of a batch as the suspension of its flow run, and resumes that run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Failed, Suspended

from batchline.engine.services import Services
from batchline.models.errors import BatchPaused
from batchline.orchestration.deployments import start_deployment_run
from batchline.orchestration.prefect_errors import interrupted
from batchline.orchestration.requested_actions import read_flow_run
from batchline.storage.records.store import BatchRecord


def suspend_run(services: Services, batch: BatchRecord, run_id: str) -> State[Any] | None:
    """Suspend the flow run of a paused batch, without a timeout, and return the run's state.

    Returns None if Prefect cannot suspend the run: it has no deployment, or is a subflow. Raises the errors of
    Prefect's client.
    """
    message = batch.pause.message if batch.pause else ""
    # A key of its own for each pause: Prefect ignores a second suspension with the same key.
    state: State[Any] = Suspended(
        pause_key=_pause_key(batch), message=f"{batch.id} is paused: {message}; Resume continues it"
    )
    with get_client(sync_client=True) as client:
        result = client.set_flow_run_state(UUID(run_id), state)
        if result.status is SetStateStatus.ABORT:
            return None
        if result.status is not SetStateStatus.ACCEPT:
            # Suspended by a person before, cancelled, or executed by another process: that state stays.
            return client.read_flow_run(UUID(run_id)).state
        if services.records.get_batch(batch.id).pause is None:
            # Resumed since the batch was read, by someone who found this run not yet suspended.
            client.resume_flow_run(UUID(run_id))
    return result.state or state


def paused_state(batch: BatchRecord, paused: BatchPaused) -> State[Any]:
    """Return the final state of a flow run that Prefect cannot suspend; its caller gets the error."""
    return Failed(
        name="Paused",
        message=f"{paused}; to continue, run it again, or: batchline run --resume {batch.id}",
        data=paused,
    )


def resume_run(run_id: str) -> bool:
    """Resume the flow run if it is suspended; return False if it is not, or if its suspension timed out.

    Raises `Interrupted` if Prefect fails.
    """
    with interrupted(), get_client(sync_client=True) as client:
        run = read_flow_run(client, run_id)
        if run is None or run.state is None or not run.state.is_paused():
            return False
        return client.resume_flow_run(run.id).status is SetStateStatus.ACCEPT


def start_new_run(services: Services, batch: BatchRecord) -> bool:
    """Start a run of the batch's deployment, unless its last run waits for a worker.

    Returns False if its last run has no deployment. Raises `Interrupted` if Prefect fails.
    """
    with interrupted(), get_client(sync_client=True) as client:
        run = read_flow_run(client, str(batch.last_flow_run_id))
    if run is None or run.deployment_id is None:
        return False
    start_deployment_run(services, batch.id)
    return True


def cancel_suspended_run(run_id: str, message: str) -> None:
    """Set a suspended flow run to Cancelled; no process executes it. Raises `Interrupted` if Prefect fails."""
    with interrupted(), get_client(sync_client=True) as client:
        run = read_flow_run(client, run_id)
        if run is not None and run.state is not None and run.state.type is StateType.PAUSED:
            client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


def is_asked_to_resume(batch: BatchRecord, *, is_follow_up: bool) -> bool:
    """Return True if a person started the current flow run to continue its paused batch.

    That is a run that was resumed or retried in Prefect, or a call of the flow in a program. It is not the first
    run of a deployment, which may have been asked for before the pause, nor the run that follows a crash, nor an
    automatic retry of the run or of the flow that called it.
    """
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None:
        return not is_follow_up
    with get_client(sync_client=True) as client:
        if run.deployment_id is not None:
            is_own_run = batch.last_flow_run_id == str(run.id) and not _is_automatic_retry(run)
            return is_own_run and _has_left_pause(client.read_flow_run_states(run.id), batch)
        if is_follow_up or _is_automatic_retry(run):
            return False
        caller = _read_caller(client, run)
        return caller is None or not _is_automatic_retry(caller)


def _has_left_pause(states: Sequence[State[Any]], batch: BatchRecord) -> bool:
    """Return True if the flow run was suspended for this pause of the batch, or had ended, and started again."""
    stops = [state for state in states if state.is_paused() or state.is_final()]
    if not stops:
        return False
    key = max(stops, key=lambda state: state.timestamp).state_details.pause_key or ""
    # A pause with a higher number came after the run was resumed.
    return not key.startswith(f"{batch.id}-") or key == _pause_key(batch)


def _pause_key(batch: BatchRecord) -> str:
    return f"{batch.id}-{batch.pauses}"


def _read_caller(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    if run.parent_task_run_id is None:
        return None
    caller_id = client.read_task_run(run.parent_task_run_id).flow_run_id
    return None if caller_id is None else read_flow_run(client, str(caller_id))


def _is_automatic_retry(run: FlowRun) -> bool:
    return 1 < run.run_count <= (run.empirical_policy.retries or 0) + 1

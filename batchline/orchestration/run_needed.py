"""Decides if a batch without a valid lease needs another run, by the state of its last run in Prefect."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import get_current_settings

from batchline.models.errors import InvalidInput
from batchline.models.status import BatchStatus
from batchline.orchestration.automations import prefect_client
from batchline.orchestration.requested_actions import read_flow_run, was_suspended
from batchline.storage.records.store import BatchRecord

START_TIMEOUT_S = 300.0
"""Seconds that a run may be Pending or Running without taking the lease; after that it counts as dead."""

FOLLOW_UP_TIMEOUT_S: Final = 60.0
"""Seconds for the crash automation to start the next run; after that housekeeping does."""

FLOW_NAME: Final = "process-batch"
MAX_LISTED_RUNS: Final = 200


class DueAction(NamedTuple):
    """The action that is due for an unfinished batch without a valid lease, and its reason."""

    reason: str
    after_crash: bool = False
    cancel: bool = False
    pause: bool = False


def has_prefect_server() -> bool:
    """Return True if a permanent Prefect server is configured."""
    return get_current_settings().api.url is not None


def server_url(before: str = "", *, param: str | None = None) -> str:
    """Return the address of the configured Prefect server.

    Raises `InvalidInput` if there is none, as a temporary one has no workers; `before` starts its message.
    """
    url = get_current_settings().api.url
    if not url:
        raise InvalidInput(
            f"{before}no Prefect server is configured: set PREFECT_API_URL, such as http://127.0.0.1:4200/api",
            param=param,
        )
    return url


def needs_run(batch: BatchRecord, *, now: float) -> bool:
    """Return True if a run should be started for an unfinished batch without a valid lease.

    False while its last run waits for a worker, is about to start or is suspended; also if a person cancelled that
    run in Prefect before it started, until the batch's window closes. A batch that was cancelled in a pause needs
    one to write its files. Raises `Interrupted` if Prefect fails.
    """
    if batch.last_flow_run_id is None:
        return True
    with prefect_client() as client:
        run = read_flow_run(client, batch.last_flow_run_id)
        state = None if run is None else run.state
        if run is None or state is None:
            return True
        if state.is_cancelled():
            return batch.status is BatchStatus.CANCELLING or now > batch.expires_at
        if state.is_paused():
            return batch.status is BatchStatus.CANCELLING
        if state.is_pending() or state.is_running():
            return batch.lease_owner is not None or _state_age_s(state, now) > START_TIMEOUT_S
        # A suspension that timed out left a pause; if there is none, someone has resumed the batch since.
        return state.is_final()


def find_due_action(batch: BatchRecord, reason: str | None, *, now: float) -> DueAction | None:
    """Return the action that is due for an unfinished batch without a valid lease, or None if there is none.

    `reason` is the reason to continue by the batch's own record, if any. A crashed run gets a successor even if
    the server lost the crash event. A batch whose run is suspended is paused, if its process did not do that; one
    whose run was cancelled after it started is cancelled. Raises `Interrupted` if Prefect fails.
    """
    default_action = None if reason is None else DueAction(reason)
    if batch.last_flow_run_id is None:
        return default_action
    with prefect_client() as client:
        run = read_flow_run(client, batch.last_flow_run_id)
        if run is None or run.state is None:
            return default_action
        if batch.pause is not None and not run.state.is_cancelled():
            return default_action  # only if it was paused for too long
        if was_suspended(client, run.id) and not run.state.is_cancelled():
            # A batch that sends nothing more cannot be paused: only its files are to be written.
            can_be_paused = batch.status in {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}
            return DueAction("its flow run was suspended", pause=True) if can_be_paused else default_action
        if run.state.is_scheduled() or _has_follow_up_run(client, batch, run.id, now):
            return None
        return _action_by_state(batch, run, run.state, default_action, now)


def _action_by_state(
    batch: BatchRecord, run: FlowRun, state: State, default_action: DueAction | None, now: float
) -> DueAction | None:
    age_s = _state_age_s(state, now)
    if state.is_cancelled() and run.run_count:
        return DueAction("its flow run was cancelled", cancel=batch.status is not BatchStatus.CANCELLING)
    if state.is_pending() or state.is_running():
        if batch.lease_owner is None and age_s <= START_TIMEOUT_S:
            return None
        return default_action or DueAction("its flow run does not respond")
    # A crash from before a retry of the batch is of an earlier generation.
    if state.is_crashed() and now - age_s >= (batch.in_progress_at or batch.created_at):
        return None if age_s < FOLLOW_UP_TIMEOUT_S else DueAction("its flow run crashed", after_crash=True)
    return default_action


def _has_follow_up_run(client: SyncPrefectClient, batch: BatchRecord, run_id: UUID, now: float) -> bool:
    """Return True if another run for the batch waits or runs that is not yet recorded with the batch."""
    open_states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
    run_filter = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states)))
    flow_filter = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME]))
    for run in client.read_flow_runs(flow_filter=flow_filter, flow_run_filter=run_filter, limit=MAX_LISTED_RUNS):
        crashed_run = str(run.parameters.get("crashed_run") or "")
        # The parameter may be the resource id of an event: prefect.flow-run.<id>.
        is_same_batch = crashed_run.endswith(str(run_id)) or run.parameters.get("batch_id") == batch.id
        state = run.state
        # Prefect leaves a run Pending if its worker was killed.
        is_dead = state is not None and not state.is_scheduled() and _state_age_s(state, now) > START_TIMEOUT_S
        if is_same_batch and run.id != run_id and not is_dead:
            return True
    return False


def _state_age_s(state: State, now: float) -> float:
    return now - state.timestamp.timestamp()

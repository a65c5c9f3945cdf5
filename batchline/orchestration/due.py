"""Decides if a batch that no process holds needs another run, by what Prefect knows of its last one."""

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
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from batchline.models.errors import InvalidInput
from batchline.models.status import BatchStatus
from batchline.orchestration.automations import connected
from batchline.orchestration.run_states import was_suspended
from batchline.storage.records import BatchRecord

STARTS_WITHIN_S = 300.0
"""How long a run may be Pending or Running and not take the batch's lease; then it is taken for dead."""

FOLLOWED_WITHIN_S: Final = 60.0
"""Seconds that the automation for crashes may take to start the next run, before housekeeping does."""

FLOW: Final = "process-batch"
MOST_WAITING: Final = 200


class Due(NamedTuple):
    """The action that is due for an unfinished batch that no process holds, and the reason."""

    why: str
    after_crash: bool = False
    cancel: bool = False


def is_configured() -> bool:
    """Return True if a Prefect server that stays is configured."""
    return get_current_settings().api.url is not None


def server_url(before: str = "", *, param: str | None = None) -> str:
    """Return the address of the configured Prefect server.

    Raises `InvalidInput` if none is, with a message that `before` begins: a temporary one would have no workers.
    """
    url = get_current_settings().api.url
    if not url:
        raise InvalidInput(
            f"{before}no Prefect server is configured: set PREFECT_API_URL, such as http://127.0.0.1:4200/api",
            param=param,
        )
    return url


def needs_run(batch: BatchRecord, *, now: float) -> bool:
    """Return True if a run is to be started for a batch that is not over and that no process holds.

    Not while its last run waits for a worker, is about to begin or was suspended; nor if a person cancelled that
    run in Prefect before it began, until the batch's window closes. Raises `Interrupted` if Prefect fails.
    """
    if batch.last_flow_run_id is None:
        return True
    with connected() as client:
        run = _read(client, batch.last_flow_run_id)
        state = None if run is None else run.state
        if run is None or state is None:
            return True
        if state.is_cancelled():
            return batch.status is BatchStatus.CANCELLING or now > batch.expires_at
        if state.is_pending() or state.is_running():
            return batch.lease_owner is not None or _age_s(state, now) > STARTS_WITHIN_S
        return state.is_final() and not was_suspended(client, run.id)


def what_is_due(batch: BatchRecord, why: str | None, *, now: float) -> Due | None:
    """Return what is due by Prefect for a batch that is not over and that no process holds; None leaves it alone.

    `why` is the reason to continue by the batch's own record, if any. A crashed run is followed even if the
    server lost the event of it. A suspended batch is left alone; one whose run was cancelled after it began is
    cancelled. Raises `Interrupted` if Prefect fails.
    """
    known = None if why is None else Due(why)
    if batch.last_flow_run_id is None:
        return known
    with connected() as client:
        run = _read(client, batch.last_flow_run_id)
        if run is None or run.state is None:
            return known
        if was_suspended(client, run.id) and not run.state.is_cancelled():
            return known if batch.status is BatchStatus.FINALIZING else None
        if run.state.is_scheduled() or _is_followed(client, batch, run.id, now):
            return None
        return _by_state(batch, run, run.state, known, now)


def _by_state(batch: BatchRecord, run: FlowRun, state: State, known: Due | None, now: float) -> Due | None:
    age_s = _age_s(state, now)
    if state.is_cancelled() and run.run_count:
        return Due("its flow run was cancelled", cancel=batch.status is not BatchStatus.CANCELLING)
    if state.is_pending() or state.is_running():
        if batch.lease_owner is None and age_s <= STARTS_WITHIN_S:
            return None
        return known or Due("its flow run shows no life")
    if state.is_crashed() and now - age_s >= (batch.in_progress_at or batch.created_at):
        return None if age_s < FOLLOWED_WITHIN_S else Due("its flow run crashed", after_crash=True)
    return known


def _is_followed(client: SyncPrefectClient, batch: BatchRecord, run_id: UUID, now: float) -> bool:
    """Return True if another run for the batch waits or runs, which has not noted itself with the batch yet."""
    open_states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states)))
    ours = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    for run in client.read_flow_runs(flow_filter=ours, flow_run_filter=wanted, limit=MOST_WAITING):
        crashed = str(run.parameters.get("crashed_run") or "")
        is_ours = crashed.endswith(str(run_id)) or run.parameters.get("batch_id") == batch.id
        if is_ours and run.id != run_id and not _died_unnoticed(run, now):
            return True
    return False


def _died_unnoticed(run: FlowRun, now: float) -> bool:
    """Return True for a run that should long have begun: Prefect leaves one Pending whose worker was killed."""
    state = run.state
    return state is not None and not state.is_scheduled() and _age_s(state, now) > STARTS_WITHIN_S


def _age_s(state: State, now: float) -> float:
    return now - state.timestamp.timestamp()


def _read(client: SyncPrefectClient, run_id: str) -> FlowRun | None:
    """Return the flow run, or None if Prefect does not know it."""
    try:
        return client.read_flow_run(UUID(run_id))
    except ObjectNotFound:
        return None

"""Reads from Prefect whether a flow run's process should continue, cancel its batch, or detach from the run."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound


class RunAction(Enum):
    """The action that a flow run's state requests from the process that executes it."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    DETACH = "detach"
    """The run is suspended, or another process executes it or is about to: stop, and set no state."""


def action_for_state(state: State) -> RunAction:
    """Return the action that the state of a flow run requests from the process that executes it.

    A run that is resumed or retried is Scheduled and Pending before it is Running in its new process.
    """
    if state.is_cancelling() or state.is_cancelled():
        return RunAction.CANCEL
    if state.is_paused() or state.is_scheduled() or state.is_pending():
        return RunAction.DETACH
    return RunAction.CONTINUE


def read_flow_run(client: SyncPrefectClient, run_id: str) -> FlowRun | None:
    """Return the flow run, or None if Prefect does not know it."""
    try:
        return client.read_flow_run(UUID(run_id))
    except ObjectNotFound:
        return None


class RunExecution:
    """This process's execution of a flow run, including the runs in this process that called it as a subflow.

    The execution is identified by its first Running state: another process would create another state. (Prefect's
    run count does not identify it, as a resumed run is not counted.)
    """

    def __init__(self, run: FlowRun) -> None:
        self._run_id = run.id
        self._first_state_id = None if run.state is None else run.state.id
        self._caller_ids: list[UUID] | None = None

    def requested_action(self, client: SyncPrefectClient) -> tuple[RunAction, State | None]:
        """Return the requested action and the state that requests it; CANCEL takes precedence over DETACH."""
        if self._caller_ids is None:
            self._caller_ids = list(_read_caller_ids(client, self._run_id))
        ids = FlowRunFilterId(any_=[self._run_id, *self._caller_ids])
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids))
        states = {self._action_for_run(run.id, run.state): run.state for run in runs if run.state is not None}
        for action in (RunAction.CANCEL, RunAction.DETACH):
            if action in states:
                return action, states[action]
        return RunAction.CONTINUE, None

    def _action_for_run(self, run_id: UUID, state: State) -> RunAction:
        if run_id == self._run_id:
            has_other_process = state.is_running() and self._first_state_id not in (None, state.id)
            return RunAction.DETACH if has_other_process else action_for_state(state)
        # A caller that is paused, not suspended, keeps its process and waits in it.
        waits_here = state.is_paused() and not state.state_details.pause_reschedule
        return RunAction.CONTINUE if waits_here else action_for_state(state)


def _read_caller_ids(client: SyncPrefectClient, run_id: UUID) -> Iterator[UUID]:
    """Yield the ids of the runs in this process that called the run, innermost first."""
    run = client.read_flow_run(run_id)
    # A run of a deployment has its own process, so callers above it are executed elsewhere.
    while run.deployment_id is None and run.parent_task_run_id is not None:
        caller_id = client.read_task_run(run.parent_task_run_id).flow_run_id
        if caller_id is None:
            return
        yield caller_id
        run = client.read_flow_run(caller_id)


def was_suspended(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Return True if a person stopped the run: its last state before the end, if any, is suspended or paused."""
    states = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    last_state = next((state for state in reversed(states) if not state.is_final()), None)
    return last_state is not None and last_state.is_paused()

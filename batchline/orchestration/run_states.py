"""Reads from Prefect if a flow run's process should continue, cancel its batch, or leave the run to others."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State


class Wish(Enum):
    """The request that a flow run's state makes of the process that executes it."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LEAVE = "leave"
    """The run is suspended, or another process executes it or is about to: stop, and set no state."""


def wish_of(state: State) -> Wish:
    """Return what the state of a flow run asks of the process that executes it.

    A run that is resumed or retried is Scheduled and Pending before it is Running in its new process.
    """
    if state.is_cancelling() or state.is_cancelled():
        return Wish.CANCEL
    if state.is_paused() or state.is_scheduled() or state.is_pending():
        return Wish.LEAVE
    return Wish.CONTINUE


class Attempt:
    """This process's attempt at a flow run, as part of the runs that called it as their subflow in this process.

    The attempt is known by the state that it began with: one that another process made Running has another. (The
    count of runs does not tell: Prefect does not count a run that is resumed.)
    """

    def __init__(self, run: FlowRun) -> None:
        self._run_id = run.id
        self._began_as = None if run.state is None else run.state.id
        self._callers: list[UUID] | None = None

    def wish(self, client: SyncPrefectClient) -> tuple[Wish, State | None]:
        """Return what is wanted now and the state that says so; a cancelled run wins over a suspended one."""
        if self._callers is None:
            self._callers = list(_callers(client, self._run_id))
        ids = FlowRunFilterId(any_=[self._run_id, *self._callers])
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids))
        found = {self._wish_of(run.id, run.state): run.state for run in runs if run.state is not None}
        for wish in (Wish.CANCEL, Wish.LEAVE):
            if wish in found:
                return wish, found[wish]
        return Wish.CONTINUE, None

    def _wish_of(self, run_id: UUID, state: State) -> Wish:
        if run_id == self._run_id:
            is_replaced = state.is_running() and self._began_as not in (None, state.id)
            return Wish.LEAVE if is_replaced else wish_of(state)
        # A caller that is paused, not suspended, keeps its process and waits in it.
        waits_here = state.is_paused() and not state.state_details.pause_reschedule
        return Wish.CONTINUE if waits_here else wish_of(state)


def _callers(client: SyncPrefectClient, run_id: UUID) -> Iterator[UUID]:
    """Yield the runs that this process executes and that called the run, the innermost first."""
    run = client.read_flow_run(run_id)
    while run.deployment_id is None and run.parent_task_run_id is not None:
        caller = client.read_task_run(run.parent_task_run_id).flow_run_id
        if caller is None:
            return
        yield caller
        run = client.read_flow_run(caller)


def was_suspended(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Return True if the run is suspended or paused, or ended from there: a person stopped it."""
    states = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    last = next((state for state in reversed(states) if not state.is_final()), None)
    return last is not None and last.is_paused()

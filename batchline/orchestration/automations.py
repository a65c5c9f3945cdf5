"""Creates and updates automations on a Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Literal

import msgspec
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from batchline.orchestration.events import BATCH_RESOURCE, STOPPED_EVENT
from batchline.orchestration.prefect_errors import interrupted


class SetupResult(msgspec.Struct, frozen=True, kw_only=True):
    """An object on the server, and whether it was created, updated or already there."""

    what: str
    name: str
    outcome: Literal["made", "renewed", "was there"]


HEARTBEAT_EVENT: Final = "prefect.flow-run.heartbeat"
STATES_WITHOUT_HEARTBEAT: Final = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
"""States in which a run sends no more heartbeats."""


@contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """Yield a client of the configured server; its failures are raised as `Interrupted`."""
    with interrupted(), get_client(sync_client=True) as client:
        yield client


def upsert_automation(client: SyncPrefectClient, automation: AutomationCore) -> SetupResult:
    """Create the automation, or update the one of the same name."""
    existing = client.read_automations_by_name(automation.name)
    if existing:
        client.update_automation(existing[0].id, automation)
        return SetupResult(what="automation", name=automation.name, outcome="renewed")
    client.create_automation(automation)
    return SetupResult(what="automation", name=automation.name, outcome="made")


def batch_event_trigger(*events: str, file: str | None = None) -> EventTrigger:
    """Return a trigger for the given events of all batches, or of batches of the given file name."""
    match = {"prefect.resource.id": f"{BATCH_RESOURCE}.*"} | ({"prefect.resource.name": file} if file else {})
    return event_trigger({f"batch.{event}" for event in events}, match)


def event_trigger(events: set[str], match: dict[str, str]) -> EventTrigger:
    """Return a trigger that fires once for each of the events about a resource that matches."""
    return EventTrigger(
        expect=events,
        match=ResourceSpecification(dict(match)),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def crash_on_missed_heartbeats(runs_text: str, related: dict[str, str], within_s: int) -> AutomationCore:
    """Return an automation that marks runs as crashed when heartbeats stop, the only sign of a dead machine.

    A trigger of the deployment then continues their batches.
    """
    return AutomationCore(
        name=f"batchline: runs {runs_text} crash without heartbeats",
        description=f"After {within_s} s without a heartbeat. Made by `batchline prefect setup`.",
        trigger=EventTrigger(
            after={HEARTBEAT_EVENT},
            expect={
                HEARTBEAT_EVENT,
                STOPPED_EVENT,
                *(f"prefect.flow-run.{state}" for state in STATES_WITHOUT_HEARTBEAT),
            },
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(dict(related)),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {within_s} s")],
    )

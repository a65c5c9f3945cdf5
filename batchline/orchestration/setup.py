"""Makes what a Prefect server needs for our deployments and does not get from `prefect deploy`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final, Literal
from uuid import UUID

import msgspec
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from batchline.models.errors import Interrupted, InvalidInput
from batchline.orchestration.blocks import BLOCKS, Webhook
from batchline.orchestration.events import RESOURCE

HEARTBEAT_S: Final = 30
"""Between the heartbeats of our deployments' runs, as prefect.yaml sets it."""

DEFAULT_HEARTBEAT_S: Final = 180
"""Between those of runs that are started elsewhere: Prefect's own default."""

MISSED: Final = 3

TAG: Final = "batchline"
"""What prefect.yaml tags our deployments with."""

ENDS: Final = ("completed", "failed", "expired", "cancelled")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Something on the server: what it is, and whether it was made, changed or there already."""

    what: str
    name: str
    outcome: Literal["made", "renewed", "was there"]


def set_up(
    *, work_pool: str = "batchline", crash_after_s: int = MISSED * HEARTBEAT_S, notify: str | None = None
) -> Iterator[Made]:
    """Make the work pool, the types of blocks and the automations that are missing, and yield each.

    Safe to repeat. `crash_after_s` is how long a deployment's run may send no heartbeat before it counts as
    crashed. `notify` is a URL that is sent the end of each batch, and word of those that will be late. Raises
    `InvalidInput` for a server that does not answer.
    """
    if crash_after_s <= HEARTBEAT_S:
        raise InvalidInput(
            f"crash-after is {crash_after_s} s; runs send a heartbeat every {HEARTBEAT_S} s, so write more",
            param="crash_after",
        )
    try:
        with get_client(sync_client=True) as client:
            yield _work_pool(client, work_pool)
            for block in BLOCKS:
                block.register_type_and_schema()
                yield Made(what="block type", name=str(block.get_block_type_slug()), outcome="renewed")
            for automation in _automations(crash_after_s, notify):
                yield _automation(client, automation)
    except InvalidInput:
        raise
    except Exception as error:  # Prefect's client raises many kinds
        raise Interrupted(f"Prefect failed: {type(error).__name__}: {error}") from error


def _work_pool(client: SyncPrefectClient, name: str) -> Made:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return Made(what="work pool", name=name, outcome="made")
    return Made(what="work pool", name=name, outcome="was there")


def _automation(client: SyncPrefectClient, wanted: AutomationCore) -> Made:
    known = client.read_automations_by_name(wanted.name)
    if known:
        client.update_automation(known[0].id, wanted)
        return Made(what="automation", name=wanted.name, outcome="renewed")
    client.create_automation(wanted)
    return Made(what="automation", name=wanted.name, outcome="made")


def _automations(crash_after_s: int, notify: str | None) -> Iterator[AutomationCore]:
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    yield _without_heartbeat("of our deployments", ours, crash_after_s)
    all_runs = {"prefect.resource.role": "flow", "prefect.resource.name": "process-batch"}
    yield _without_heartbeat(
        "of process-batch, started anywhere,", all_runs, max(crash_after_s, MISSED * DEFAULT_HEARTBEAT_S)
    )
    if notify is not None:
        yield _notification(notify)


def _without_heartbeat(which: str, related: dict[str, str], within_s: int) -> AutomationCore:
    """Count runs as crashed whose heartbeats end without a word: nobody else tells when a machine dies.

    What goes on with their batches is a trigger of the deployment.
    """
    beat, ends = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed")
    return AutomationCore(
        name=f"batchline: runs {which} crash without heartbeats",
        description=f"After {within_s} s without a heartbeat. Made by `batchline prefect setup`.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in ends)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(dict(related)),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {within_s} s")],
    )


def _notification(url: str) -> AutomationCore:
    """Send a webhook the end of each batch, and word of those that will not be done in time."""
    block_id = UUID(str(Webhook(url=SecretStr(url)).save("batchline-notify", overwrite=True)))
    return AutomationCore(
        name="batchline: tell of batches",
        description="Ends of batches and deadlines in danger, to a webhook. Made by `batchline prefect setup`.",
        trigger=EventTrigger(
            expect={*(f"batch.{end}" for end in ENDS), "batch.deadline_at_risk"},
            match=ResourceSpecification({"prefect.resource.id": f"{RESOURCE}.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[CallWebhook(block_document_id=block_id, payload=NOTE)],
    )


NOTE: Final = """{
  "text": "{{ event.resource.name }}: {{ event.event }}, {{ event.payload.completed }} ok, \
{{ event.payload.failed }} failed of {{ event.payload.total }}",
  "event": "{{ event.event }}",
  "batch_id": "{{ event.payload.batch_id }}"
}"""
"""What is sent: `text` is what chat services show."""

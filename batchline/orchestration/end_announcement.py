"""Announces the end of a batch in Prefect once: by the run that ended it, or later by housekeeping.

Automations react to the event: notifications, webhooks, the next batch of a chain. The event is sent first, then
marked in the batch's record. If the process dies in between, the event is sent again under the same id.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Final
from uuid import UUID, uuid5

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, RelatedResource, Resource
from prefect.events.related import object_as_related_resource, tags_as_related_resources
from prefect.exceptions import ObjectNotFound

from batchline.engine.services import Services
from batchline.models.analytics import BatchReport
from batchline.models.errors import Interrupted, StorageFault
from batchline.orchestration.artifacts import publish_outcome
from batchline.orchestration.automations import prefect_client
from batchline.orchestration.events import batch_event
from batchline.orchestration.final_state import flow_run_state, outcome_message
from batchline.orchestration.requested_actions import read_flow_run
from batchline.report.report_data import report_of
from batchline.storage.records.store import BatchRecord

log = logging.getLogger(__name__)

EVENT_ID_NAMESPACE: Final = UUID("6f2b7c1e-0d55-4b8a-9a51-6d0b1f0c7a11")
"""Namespace of our event ids, so that Prefect recognizes an event that is sent twice."""


def announce_end(services: Services, batch: BatchRecord, report: BatchReport | None) -> None:
    """Announce the end of the batch unless that was done; failures are logged and left to housekeeping."""
    if batch.announced_at is not None or batch.last_flow_run_id is None:
        return
    try:
        with prefect_client() as client:
            _send_end_event(services, batch, report, client, read_flow_run(client, batch.last_flow_run_id))
    except (Interrupted, StorageFault) as error:
        log.warning("the end of %s was not announced: %s; housekeeping will do so", batch.id, error)


def announce_missed_end(services: Services, batch_id: str) -> None:
    """Announce the end of a batch whose run died before doing so: outcome on the run's page, state and event.

    Raises `Interrupted` if Prefect fails.
    """
    batch = services.records.get_batch(batch_id)
    if batch.announced_at is not None or batch.last_flow_run_id is None:
        return
    report = report_of(services.store, batch.id)
    with prefect_client() as client:
        run = read_flow_run(client, batch.last_flow_run_id)
        if run is not None:
            outcome_filter = ArtifactFilter(
                key=ArtifactFilterKey(any_=[batch.id]), flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])
            )
            if not client.read_artifacts(artifact_filter=outcome_filter):
                publish_outcome(services, batch, report, run_id=run.id)
            if run.state is not None and (run.state.is_crashed() or run.state.is_running()):
                state = flow_run_state(batch, outcome_message(batch, report))
                client.set_flow_run_state(run.id, state, force=True)
        _send_end_event(services, batch, report, client, run)


def _send_end_event(
    services: Services,
    batch: BatchRecord,
    report: BatchReport | None,
    client: SyncPrefectClient,
    run: FlowRun | None,
) -> None:
    name, resource, payload = batch_event(batch.status.value, batch, report=report, run_id=run.id if run else None)
    event = Event(
        id=uuid5(EVENT_ID_NAMESPACE, f"{batch.id} {batch.generation} {batch.status}"),
        event=name,
        resource=Resource(resource),
        related=_related_resources(client, run) if run is not None else [],
        payload=payload,
    )
    # Not through Prefect's event worker, which silently drops events that it cannot send.
    client.request("POST", "/events", json=[event.model_dump(mode="json")])
    # Mark after sending: a crash in between sends the event twice, under the same id, rather than never.
    services.records.mark_announced(batch.id, generation=batch.generation, now=int(time.time()))


def _related_resources(client: SyncPrefectClient, run: FlowRun) -> list[RelatedResource]:
    """Return the related resources that Prefect itself adds to the events of a run."""
    objects: dict[str, object] = {"flow-run": run, "flow": client.read_flow(run.flow_id)}
    if run.deployment_id is not None:
        with suppress(ObjectNotFound):  # it was deleted since
            objects["deployment"] = client.read_deployment(run.deployment_id)
    resources = [object_as_related_resource(kind, kind, related) for kind, related in objects.items()]
    return resources + tags_as_related_resources(run.tags)

"""Sends events about batches, with their metrics, that Prefect's automations can react to."""

from __future__ import annotations

import logging
import time
from typing import Any, Final
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import RelatedResource, emit_event
from prefect.events.related import tags_as_related_resources
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from batchline.models.analytics import BatchReport
from batchline.models.status import TERMINAL_STATUSES
from batchline.orchestration.final_state import outcome_message
from batchline.orchestration.prefect_errors import log_failures
from batchline.storage.records.store import BatchRecord

BATCH_RESOURCE: Final = "batchline.batch"

STOPPED_EVENT: Final = "batchline.flow-run.stopped"
"""Sent by a flow run's process when it expects no more heartbeats of its own.

Prefect sends heartbeats in the background, so those of a short run arrive after the event of its end, which the
server creates itself. This event goes through the same queue as the heartbeats, after the last of them.
"""


HEARTBEAT_S: Final = 30
"""Seconds between heartbeats of our deployments' runs, as set in prefect.yaml and by the commands."""

HEARTBEAT_SETTLE_S: Final = 1.5
"""Seconds within which the server handles a heartbeat, unless it is overloaded."""


def emit_batch_event(event: str, batch: BatchRecord, *, run_id: UUID | None = None, **extra: Any) -> None:
    """Send the event `batch.<event>`, with the batch as its resource.

    Prefect sends it in the background and adds the current flow run; pass `run_id` from any thread other than the
    flow run's own.
    """
    name, resource, payload = batch_event(event, batch, run_id=run_id)
    emit_event(event=name, resource=resource, payload={**payload, **extra})


def batch_event(
    event: str, batch: BatchRecord, *, report: BatchReport | None = None, run_id: UUID | None = None
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return name, resource and payload of the event `batch.<event>`, without contents of requests or answers."""
    resource = {
        "prefect.resource.id": f"{BATCH_RESOURCE}.{batch.id}",
        "prefect.resource.name": batch.input_filename,
        "batchline.endpoint": batch.endpoint,
        "batchline.source": batch.dwext.source if batch.dwext else "api",
    }
    payload: dict[str, Any] = {
        "batch_id": batch.id,
        "file": batch.input_filename,
        "status": batch.status.value,
        "expires_at": batch.expires_at,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
        "unanswered": batch.unanswered,
        "generation": batch.generation,
        **run_page_payload(str(run_id) if run_id else flow_run.id),
    }
    if batch.status in TERMINAL_STATUSES:
        payload |= {"seconds": batch.ended_at - batch.created_at, "message": outcome_message(batch, report)}
    if batch.analytics is not None:
        payload |= batch.analytics.model_dump(mode="json", exclude_none=True)
    if report is not None:
        payload["failures"] = report.failures
    if batch.errors:
        payload["error"] = batch.errors[0].message
    return f"batch.{event}", resource, payload


def emit_stopped(run: FlowRun, flow_name: str) -> None:
    """Send `STOPPED_EVENT`: this process stops executing the flow run on purpose."""
    flow = {
        "prefect.resource.id": f"prefect.flow.{run.flow_id}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": flow_name,
    }
    run_resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    emit_event(STOPPED_EVENT, run_resource, related=[RelatedResource(flow), *tags_as_related_resources(run.tags)])


def report_stopped(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Send `STOPPED_EVENT` at the end of a run; a hook for the flow's final states."""
    del state
    if flow_run.deployment_id is not None:
        # The server handles events that arrive together in any order, so wait until a heartbeat that was sent just
        # now is handled. Heartbeats are sent when a run starts and every HEARTBEAT_S.
        age_s = 0.0
        with (
            log_failures("the run's start is unknown", logging.DEBUG),
            get_client(sync_client=True) as client,
        ):
            if started_at := client.read_flow_run(flow_run.id).start_time:
                age_s = time.time() - started_at.timestamp()
        time.sleep(max(0.0, HEARTBEAT_SETTLE_S - age_s % HEARTBEAT_S))
    emit_stopped(flow_run, flow.name)


def run_page_payload(run_id: str | None) -> dict[str, str]:
    """Return the URL of the run's page from this process's settings; the server may not know its own address."""
    page = url_for("flow-run", run_id) if run_id else None
    return {"run_url": page} if page else {}

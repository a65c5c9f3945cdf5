"""Events that Prefect's automations can act on: what became of a batch, with its figures."""

from __future__ import annotations

import time
from typing import Any, Final
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from batchline.models.analytics import BatchReport
from batchline.models.status import TERMINAL
from batchline.orchestration.outcome import outcome_message
from batchline.storage.records import BatchRecord

RESOURCE: Final = "batchline.batch"

STOPPED: Final = "batchline.flow-run.stopped"
"""Sent by a flow run's process when it expects no more heartbeats of its own.

Prefect sends heartbeats in the background, so those of a short run arrive after the event of its end, which the
server itself sends. This event takes the same way as the heartbeats, after the last of them.
"""


HEARTBEAT_S: Final = 30
"""Seconds between the heartbeats of our deployments' runs, as prefect.yaml and the commands set it."""

SETTLES_S: Final = 1.5
"""Seconds after which the server has handled a heartbeat, unless it is overloaded."""


def emit(
    what: str, batch: BatchRecord, *, report: BatchReport | None = None, run_id: UUID | None = None, **more: Any
) -> None:
    """Send the event `batch.<what>`, with the batch as its resource.

    Prefect sends it in the background, and adds the flow run in which it happened; `run_id` names that where
    another thread than the run's own calls.
    """
    name, resource, payload = event_of(what, batch, report=report, run_id=run_id)
    emit_event(event=name, resource=resource, payload={**payload, **more})


def event_of(
    what: str, batch: BatchRecord, *, report: BatchReport | None = None, run_id: UUID | None = None
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return the name, the resource and the payload of the event `batch.<what>`."""
    resource = {
        "prefect.resource.id": f"{RESOURCE}.{batch.id}",
        "prefect.resource.name": batch.input_filename,
        "batchline.endpoint": batch.endpoint,
        "batchline.source": batch.dwext.source if batch.dwext else "api",
    }
    payload = {**_figures(batch, report), **page_of(str(run_id) if run_id else flow_run.id)}
    return f"batch.{what}", resource, payload


def emit_stopped(run: FlowRun, flow_name: str) -> None:
    """Report that this process stops executing the flow run on purpose."""
    flow = {
        "prefect.resource.id": f"prefect.flow.{run.flow_id}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": flow_name,
    }
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
    stopped = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    emit_event(event=STOPPED, resource=stopped, related=[flow, *tags])


def report_stopped(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Report the end of a run, as a hook of the flow for its final states."""
    del state
    if flow_run.deployment_id is not None:
        # The server handles events that arrive together in any order, and could count the heartbeat of this
        # moment after the end. Heartbeats are sent when a run begins and every HEARTBEAT_S.
        time.sleep(max(0.0, SETTLES_S - _ran_for_s(flow_run.id) % HEARTBEAT_S))
    emit_stopped(flow_run, flow.name)


def _ran_for_s(run_id: UUID) -> float:
    """Return the seconds since the flow run began; 0 if the server does not say."""
    try:
        with get_client(sync_client=True) as client:
            began = client.read_flow_run(run_id).start_time
    except Exception:  # noqa: BLE001 - Prefect's client raises many kinds, and the end is to be reported anyway
        return 0.0
    return 0.0 if began is None else time.time() - began.timestamp()


def page_of(run_id: str | None) -> dict[str, str]:
    """Where this process knows the run's page to be: a server that was told no address of its own knows none."""
    page = url_for("flow-run", run_id) if run_id else None
    return {"run_url": page} if page else {}


def _figures(batch: BatchRecord, report: BatchReport | None) -> dict[str, Any]:
    """What is known of the batch, for templates and conditions; nothing of a request or an answer."""
    figures: dict[str, Any] = {
        "batch_id": batch.id,
        "file": batch.input_filename,
        "status": batch.status.value,
        "expires_at": batch.expires_at,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
        "unanswered": batch.unanswered,
        "generation": batch.generation,
    }
    if batch.status in TERMINAL:
        figures["seconds"] = batch.ended_at - batch.created_at
        figures["message"] = outcome_message(batch, report)
    if batch.analytics is not None:
        figures |= batch.analytics.model_dump(mode="json", exclude_none=True)
    if report is not None:
        figures["failures"] = report.failures
    if batch.errors:
        figures["error"] = batch.errors[0].message
    return figures

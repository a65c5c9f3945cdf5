"""Events that Prefect's automations can act on: what became of a batch, with its figures."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from batchline.models.analytics import BatchReport
from batchline.models.status import TERMINAL
from batchline.storage.records import BatchRecord

RESOURCE: Final = "batchline.batch"


def emit(
    what: str, batch: BatchRecord, *, report: BatchReport | None = None, run_id: UUID | None = None, **more: Any
) -> None:
    """Send the event `batch.<what>`, with the batch as its resource.

    Prefect sends it in the background, and adds the flow run in which it happened; `run_id` names that where
    another thread than the run's own calls.
    """
    emit_event(
        event=f"batch.{what}",
        resource={
            "prefect.resource.id": f"{RESOURCE}.{batch.id}",
            "prefect.resource.name": batch.input_filename,
            "batchline.endpoint": batch.endpoint,
            "batchline.source": batch.dwext.source if batch.dwext else "api",
        },
        payload={**_figures(batch, report), **_page(str(run_id) if run_id else flow_run.id), **more},
    )


def _page(run_id: str | None) -> dict[str, str]:
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
        "generation": batch.generation,
    }
    if batch.status in TERMINAL:
        figures["seconds"] = batch.ended_at - batch.created_at
    if batch.analytics is not None:
        figures |= batch.analytics.model_dump(mode="json", exclude_none=True)
    if report is not None:
        figures["failures"] = report.failures
    if batch.errors:
        figures["error"] = batch.errors[0].message
    return figures

"""Reports files that a sync pass could not pick up: quarantine events, and a table on the run's page."""

from __future__ import annotations

import uuid
from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.events import emit_event
from prefect.runtime import flow_run

from batchline.models.sync import SyncEvent, SyncSummary
from batchline.orchestration.artifacts import current_run_id, escape, markdown_table
from batchline.orchestration.events import run_page_payload
from batchline.orchestration.prefect_errors import log_failures

FILE_RESOURCE: Final = "batchline.source-file"
QUARANTINED_EVENT: Final = "batchline.file-quarantined"
PROBLEM_KINDS: Final = frozenset({"quarantined", "unreadable", "failed"})
MAX_ROWS: Final = 200


def emit_quarantined(event: SyncEvent) -> None:
    """Send the event that a file was moved to quarantine, with the file as its resource."""
    file_uri = str(event.file)
    emit_event(
        event=QUARANTINED_EVENT,
        resource={
            "prefect.resource.id": f"{FILE_RESOURCE}.{uuid.uuid5(uuid.NAMESPACE_URL, file_uri)}",
            "prefect.resource.name": file_uri.rpartition("/")[2],
        },
        payload={"file": file_uri, "place": event.place, "reason": event.reason, **run_page_payload(flow_run.id)},
    )


def publish_problems(summary: SyncSummary) -> None:
    """Publish the sync pass's problems, if any, on the flow run's page; a failure to do so is only logged."""
    rows = [
        (event.kind, *map(escape, (event.file or event.batch_id or "", event.place or "", event.reason or "")))
        for event in summary.events
        if event.kind in PROBLEM_KINDS
    ]
    if not rows:
        return
    heading = f"# {escape(summary.source)}\n**{escape(summary.message)}**"
    table = markdown_table("| | file | where it is now | why |\n|---|---|---|---|", rows[:MAX_ROWS])
    overflow_note = f"\n\n{len(rows) - MAX_ROWS:,} more are in the run's log." if len(rows) > MAX_ROWS else ""
    artifact = ArtifactCreate(
        key=f"sync-{uuid.uuid5(uuid.NAMESPACE_URL, summary.source)}",
        type="markdown",
        description=summary.message,
        data=f"{heading}\n\n{table}{overflow_note}\n",
        flow_run_id=current_run_id(),
    )
    with log_failures(f"problems of {summary.source} were not published"), get_client(sync_client=True) as client:
        client.create_artifact(artifact)

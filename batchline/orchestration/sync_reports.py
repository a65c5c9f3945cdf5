"""Reports files that a sync round could not take: an event for each in quarantine, and a table on the run page."""

from __future__ import annotations

import logging
import uuid
from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.events import emit_event
from prefect.runtime import flow_run

from batchline.models.sync import SyncEvent, SyncSummary
from batchline.orchestration.artifacts import cell, this_run
from batchline.orchestration.events import page_of

log = logging.getLogger(__name__)

FILE: Final = "batchline.source-file"
QUARANTINED: Final = "batchline.file-quarantined"
PROBLEMS: Final = frozenset({"quarantined", "unreadable", "failed"})
MOST_ROWS: Final = 200


def emit_quarantined(event: SyncEvent) -> None:
    """Send the event that a file was put into quarantine, with the file as its resource."""
    file = str(event.file)
    emit_event(
        event=QUARANTINED,
        resource={
            "prefect.resource.id": f"{FILE}.{uuid.uuid5(uuid.NAMESPACE_URL, file)}",
            "prefect.resource.name": file.rpartition("/")[2],
        },
        payload={"file": file, "place": event.place, "reason": event.reason, **page_of(flow_run.id)},
    )


def show_problems(summary: SyncSummary) -> None:
    """Put what the round could not do on the flow run's page, if anything; a failure of that is only logged."""
    rows = [
        f"| {event.kind} | {cell(event.file or event.batch_id or '')} | {cell(event.place or '')} "
        f"| {cell(event.reason or '')} |"
        for event in summary.events
        if event.kind in PROBLEMS
    ]
    if not rows:
        return
    more = [f"\n{len(rows) - MOST_ROWS:,} more are in the run's log."] if len(rows) > MOST_ROWS else []
    page = [f"# {cell(summary.source)}", f"**{cell(summary.message)}**", ""]
    table = ["| | file | where it is now | why |", "|---|---|---|---|", *rows[:MOST_ROWS], *more]
    made = ArtifactCreate(
        key=f"sync-{uuid.uuid5(uuid.NAMESPACE_URL, summary.source)}",
        type="markdown",
        description=summary.message,
        data="\n".join([*page, *table]) + "\n",
        flow_run_id=this_run(),
    )
    try:
        with get_client(sync_client=True) as client:
            client.create_artifact(made)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
        log.warning("the problems of the round over %s were not put on its page: %s", summary.source, error)

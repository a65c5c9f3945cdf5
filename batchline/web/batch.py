"""A batch's page: how it is, what came of it, and what can be done with it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from batchline.api.batches import deleted
from batchline.api.places import FairRoute, in_turn
from batchline.models.errors import InvalidInput, NotFound
from batchline.models.status import TERMINAL
from batchline.operations import Batchline
from batchline.operations.keeper import OWN
from batchline.operations.progress import Watch
from batchline.steps.report.page import told_of
from batchline.storage.records import BatchRecord
from batchline.web.asked import Here
from batchline.web.listing import members_seen
from batchline.web.rendering import page

SHOWN_ERRORS: Final = 1_000
MEDIA_TYPES: Final = {
    "output.jsonl": "application/x-ndjson",
    "errors.jsonl": "application/x-ndjson",
    "requests.parquet": "application/vnd.apache.parquet",
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
}
REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The report is a page without scripts whose style is in it."""

router = APIRouter(prefix="/batches/{batch_id}", route_class=FairRoute)


@router.get("")
def show_batch(request: Request, batch_id: str, client: Here) -> Response:
    """Show the batch."""
    batch = client.batches.record(batch_id)
    watch: Watch = request.app.state.watch
    is_over = batch.status in TERMINAL
    return page(
        request,
        "batch.html",
        **(_outcome(client, batch) if is_over else _nothing_yet(batch)),
        progress=None if is_over else watch.look(batch),
        is_queued=client.runner.is_running(batch_id),
        goes_on_by_itself=batch.dwext is not None and batch.dwext.source in OWN,
        steps=steps_of(batch),
        files=sorted(client.batches.files(batch_id)),
        input_file=_input_file(client, batch),
        members=members_seen(request, client),
        max_errors=SHOWN_ERRORS,
    )


def _outcome(client: Batchline, batch: BatchRecord) -> dict[str, Any]:
    """What the report of a batch tells; one that ended before anything was sent has none."""
    try:
        report, samples = client.batches.report(batch.id), client.batches.failures(batch.id)
    except NotFound:
        return _nothing_yet(batch)
    return {**told_of(batch, report, samples), "files_at": f"/batches/{batch.id}/"}


def _nothing_yet(batch: BatchRecord) -> dict[str, Any]:
    return {"batch": batch, "report": None, "unanswered": {}, "usage": batch.analytics}


def _input_file(client: Batchline, batch: BatchRecord) -> str | None:
    """The id of its input file, while that is there."""
    try:
        return client.files.retrieve(batch.input_file_id).id
    except NotFound:
        return None


def steps_of(batch: BatchRecord) -> list[tuple[str, int, int | None]]:
    """What the batch went through: name, when, and the seconds until what followed; none for the last."""
    first = "Sending" if not batch.generation else "Sending again"
    named = [
        ("Created", batch.created_at),
        (first, batch.in_progress_at),
        ("Cancelling", batch.cancelling_at),
        ("Writing", batch.finalizing_at),
        (batch.status.capitalize(), batch.ended_at if batch.status in TERMINAL else None),
    ]
    found = sorted(((name, at) for name, at in named if at), key=lambda each: each[1])
    ends = [at for _, at in found[1:]]
    return [
        (name, at, end - at if end is not None else None)
        for (name, at), end in zip(found, [*ends, None], strict=True)
    ]


@router.post("/cancel")
def cancel_batch(batch_id: str, client: Here) -> Response:
    """Cancel the batch."""
    client.batches.cancel(batch_id)
    return _back_to(batch_id)


@router.post("/retry")
def retry_batch(batch_id: str, client: Here) -> Response:
    """Try all its failed requests again."""
    client.batches.retry(batch_id)
    return _back_to(batch_id)


@router.post("/retry-requests")
def retry_requests(
    batch_id: str, client: Here, request_id: Annotated[list[str] | None, Form()] = None
) -> Response:
    """Try the chosen requests again."""
    if not request_id:
        raise InvalidInput("no request is chosen; tick those that are to be tried again", param="request_id")
    client.batches.retry_requests(batch_id, request_id)
    return _back_to(batch_id)


@router.get("/delete")
def ask_to_delete(request: Request, batch_id: str, client: Here) -> Response:
    """Ask whether the batch is to go."""
    batch = client.batches.record(batch_id)
    return page(request, "delete_batch.html", batch=batch)


@router.post("/delete")
async def delete_batch(batch_id: str, client: Here) -> Response:
    """Delete the batch."""
    await deleted(client, batch_id)
    return RedirectResponse("/", 303)


@router.get("/{name}")
def read_file(batch_id: str, name: str, client: Here) -> Response:
    """Give one of the batch's files: the report to look at, the others to keep."""
    found = client.batches.files(batch_id)
    if name not in found or name not in MEDIA_TYPES:
        raise NotFound(f"batch {batch_id} has no file {name[:80]!r}")
    as_what = "inline" if name == "report.html" else "attachment"
    headers = {"Content-Disposition": f'{as_what}; filename="{batch_id}-{name}"'}
    if name == "report.html":
        headers["Content-Security-Policy"] = REPORT_POLICY
    return StreamingResponse(in_turn(found[name]), headers=headers, media_type=MEDIA_TYPES[name])


def is_retriable(batch: BatchRecord) -> bool:
    """Whether some of its requests can be tried again."""
    return batch.status in TERMINAL and batch.not_completed > 0 and batch.final_prefix is not None


def _back_to(batch_id: str) -> Response:
    return RedirectResponse(f"/batches/{batch_id}", 303)

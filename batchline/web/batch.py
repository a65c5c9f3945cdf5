"""The page of a batch: its state, results and actions."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from batchline.api.batches import delete_when_idle, resume_paused
from batchline.api.concurrency import FairRoute, iterate_in_thread
from batchline.client import BatchRecord
from batchline.client.pauses import SERVER_ORIGINS
from batchline.models.errors import InvalidInput, NotFound
from batchline.models.status import TERMINAL_STATUSES
from batchline.report.page import template_context
from batchline.web.batch_list import visible_members
from batchline.web.dependencies import CurrentClient
from batchline.web.rendering import render_page

MAX_SHOWN_ERRORS: Final = 1_000
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
"""Content security policy of the report, which has inline styles and no scripts."""

router = APIRouter(prefix="/batches/{batch_id}", route_class=FairRoute)


@router.get("")
def show_batch(request: Request, batch_id: str, client: CurrentClient) -> Response:
    """Show the batch."""
    batch = client.batches.record(batch_id)
    is_ended, input_file = batch.status in TERMINAL_STATUSES, None
    with suppress(NotFound):  # it was deleted
        input_file = client.files.retrieve(batch.input_file_id).id
    outcome: dict[str, Any] = {"batch": batch, "report": None, "unanswered": {}, "usage": batch.analytics}
    if is_ended:
        with suppress(NotFound):  # without a report if nothing was sent
            report, samples = client.batches.report(batch.id), client.batches.failures(batch.id)
            outcome = {**template_context(batch, report, samples), "files_at": f"/batches/{batch.id}/"}
    return render_page(
        request,
        "batch.html",
        **outcome,
        progress=None if is_ended else client.batches.progress(batch),
        is_queued=client.batches.is_queued(batch_id),
        goes_on_by_itself=batch.dwext is not None and batch.dwext.source in SERVER_ORIGINS,
        steps=timeline_of(batch),
        files=sorted(client.batches.files(batch_id)),
        input_file=input_file,
        members=visible_members(request, client),
        max_errors=MAX_SHOWN_ERRORS,
    )


def timeline_of(batch: BatchRecord) -> list[tuple[str, int, int | None]]:
    """Return name, time and seconds until the next event, None for the last, of the batch's events."""
    sending_name = "Sending" if not batch.generation else "Sending again"
    events = [
        ("Created", batch.created_at),
        (sending_name, batch.in_progress_at),
        ("Cancelling", batch.cancelling_at),
        ("Writing", batch.finalizing_at),
        (batch.status.capitalize(), batch.ended_at if batch.status in TERMINAL_STATUSES else None),
    ]
    reached = sorted(((name, timestamp) for name, timestamp in events if timestamp), key=lambda event: event[1])
    return [
        *((name, begin, end - begin) for (name, begin), (_, end) in pairwise(reached)),
        (*reached[-1], None),
    ]


@router.post("/cancel")
def cancel_batch(batch_id: str, client: CurrentClient) -> Response:
    """Cancel the batch."""
    client.batches.cancel(batch_id)
    return _redirect_to_batch(batch_id)


@router.post("/pause")
def pause_batch(batch_id: str, client: CurrentClient) -> Response:
    """Pause the batch."""
    client.batches.pause(batch_id)
    return _redirect_to_batch(batch_id)


@router.post("/resume")
def resume_batch(batch_id: str, client: CurrentClient) -> Response:
    """Resume the batch where it ran."""
    resume_paused(client, batch_id)
    return _redirect_to_batch(batch_id)


@router.post("/retry")
def retry_batch(batch_id: str, client: CurrentClient, mark: Annotated[str | None, Form()] = None) -> Response:
    """Send all failed requests again, or the completed ones with a mark."""
    client.batches.retry(batch_id, mark=mark)
    return _redirect_to_batch(batch_id)


@router.post("/retry-requests")
def retry_requests(
    batch_id: str, client: CurrentClient, request_id: Annotated[list[str] | None, Form()] = None
) -> Response:
    """Send the chosen requests again."""
    if not request_id:
        raise InvalidInput("no request is selected; select the requests to retry", param="request_id")
    client.batches.retry_requests(batch_id, request_id)
    return _redirect_to_batch(batch_id)


@router.get("/delete")
def ask_to_delete(request: Request, batch_id: str, client: CurrentClient) -> Response:
    """Ask for confirmation."""
    batch = client.batches.record(batch_id)
    return render_page(request, "delete_batch.html", batch=batch)


@router.post("/delete")
async def delete_batch(batch_id: str, client: CurrentClient) -> Response:
    """Delete the batch."""
    await delete_when_idle(client, batch_id)
    return RedirectResponse("/", 303)


@router.get("/{name}")
def read_file(batch_id: str, name: str, client: CurrentClient) -> Response:
    """Return one of the batch's files: the report inline, the others as downloads."""
    files = client.batches.files(batch_id)
    if name not in files or name not in MEDIA_TYPES:
        raise NotFound(f"batch {batch_id} has no file {name[:80]!r}")
    disposition = "inline" if name == "report.html" else "attachment"
    headers = {"Content-Disposition": f'{disposition}; filename="{batch_id}-{name}"'}
    if name == "report.html":
        headers["Content-Security-Policy"] = REPORT_POLICY  # the pages' own policy forbids inline styles
    return StreamingResponse(iterate_in_thread(files[name]), headers=headers, media_type=MEDIA_TYPES[name])


def is_retryable(batch: BatchRecord) -> bool:
    """Return True if some of the batch's requests can be sent again."""
    return batch.status in TERMINAL_STATUSES and batch.not_completed > 0 and batch.final_prefix is not None


def _redirect_to_batch(batch_id: str) -> Response:
    # 303: reloading the page must not repeat the POST.
    return RedirectResponse(f"/batches/{batch_id}", 303)

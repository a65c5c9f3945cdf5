"""Making a batch: a file is chosen and checked, what is wrong is shown beside it, and then it is started."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from batchline.api.errors import told
from batchline.api.places import FairRoute, run_aside
from batchline.api.upload import Form, Uploads
from batchline.models.batches import MAX_METADATA_PAIRS, metadata_of
from batchline.models.errors import BatchlineError, InvalidInput, NotFound
from batchline.models.files import FileObject
from batchline.operations import Batchline
from batchline.web.asked import Here, Sent, query_of
from batchline.web.checks import Check, Checks
from batchline.web.rendering import page

WINDOWS: Final = ("1h", "6h", "24h", "3d", "7d")
WINDOW: Final = "24h"
FIELDS: Final = frozenset({"endpoint"})

router = APIRouter(route_class=FairRoute)


@router.get("/new")
def show_form(request: Request, client: Here) -> Response:
    """Show where to drop a file, or the one that was chosen and what is found in it."""
    asked = query_of(request, "file", "endpoint")
    if "file" not in asked:
        return _drop_zone(request, client)
    file = client.files.retrieve(asked["file"])
    if file.purpose != "batch":
        raise InvalidInput(f"{file.filename} holds results; a batch is made of an uploaded file", param="file")
    check = _checks(request).of(client, file, asked.get("endpoint"))
    if check is not None and check.error_count:
        return _drop_zone(request, client, file=file, check=check, is_kept=True)
    return _start_form(request, client, file, check)


@router.post("/new")
async def receive_file(request: Request, client: Here) -> Response:
    """Store a file and check it; one that cannot be a batch is not kept."""
    uploads: Uploads = request.app.state.uploads
    endpoint = None
    try:
        form = Form(request, beside=FIELDS)
        file = await uploads.receive_form(form, request, client)
        endpoint = form.fields.get("endpoint", b"").decode(errors="replace") or None
        check = await run_aside(_checked_or_deleted, _checks(request), client, file, endpoint)
    except (BatchlineError, HTTPException) as error:
        found = told(error)
        return _drop_zone(request, client, problem=str(found.detail), status=found.status_code, endpoint=endpoint)
    if check is not None and check.error_count:
        return _drop_zone(request, client, file=file, check=check, status=400, endpoint=endpoint)
    chosen = {} if endpoint is None else {"endpoint": endpoint}
    return RedirectResponse(f"/new?{urlencode({'file': file.id, **chosen})}", 303)


def _checked_or_deleted(checks: Checks, client: Batchline, file: FileObject, endpoint: str | None) -> Check | None:
    is_good = False
    try:
        check = checks.of(client, file, endpoint)
        is_good = check is None or not check.error_count
        return check
    finally:
        if not is_good:
            with suppress(NotFound):
                client.files.delete(file.id)


@router.post("/batches")
def create_batch(request: Request, client: Here, form: Sent) -> Response:
    """Make the batch and go to its page; sent twice, it is made once."""
    sent = {name: str(value) for name, value in form.items()}
    try:
        batch = client.batches.create(
            input_file_id=sent.get("file", ""),
            endpoint=sent.get("endpoint", ""),
            completion_window=sent.get("window", "").strip() or WINDOW,
            metadata=metadata_of(sent.get("metadata", "")) or None,
            idempotency_key=sent.get("once") or None,
        )
    except InvalidInput as error:
        file = client.files.retrieve(sent.get("file", ""))
        if error.param == "endpoint":
            return _drop_zone(request, client, problem=str(error), status=400)
        return _start_form(request, client, file, None, sent=sent, problem=error)
    return RedirectResponse(f"/batches/{batch.id}", 303)


def _drop_zone(
    request: Request,
    client: Batchline,
    *,
    status: int = 200,
    file: FileObject | None = None,
    check: Check | None = None,
    problem: str | None = None,
    endpoint: str | None = None,
    is_kept: bool = False,
) -> Response:
    endpoints = client.engine.settings.endpoints
    return page(
        request,
        "new.html",
        status=status,
        file=file,
        check=check,
        problem=problem,
        endpoints=endpoints,
        endpoint=endpoint,
        is_kept=is_kept,
    )


def _start_form(
    request: Request,
    client: Batchline,
    file: FileObject,
    check: Check | None,
    *,
    sent: dict[str, str] | None = None,
    problem: InvalidInput | None = None,
) -> Response:
    """The form that starts a batch, filled in as it was sent, with what was wrong with it."""
    settings = client.engine.settings
    if check is None:
        check = _checks(request).of(client, file, (sent or {}).get("endpoint"))
    values = {"window": WINDOW, "metadata": "", "endpoint": "", "once": secrets.token_urlsafe(16), **(sent or {})}
    return page(
        request,
        "start.html",
        status=400 if problem else 200,
        file=file,
        check=check,
        sent=values,
        problem=problem,
        endpoints=settings.endpoints,
        windows=[window for window in WINDOWS if _is_allowed(client, window)],
        window_bounds=(settings.min_completion_window, settings.max_completion_window),
        most_pairs=MAX_METADATA_PAIRS,
    )


def _is_allowed(client: Batchline, window: str) -> bool:
    try:
        client.engine.settings.checked_window_s(window)
    except InvalidInput:
        return False
    return True


def _checks(request: Request) -> Checks:
    checks: Checks = request.app.state.checks
    return checks

"""Pages to create a batch: upload and check a file, show its errors, and start the batch."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from batchline.api.concurrency import FairRoute, run_in_thread
from batchline.api.errors import to_http_exception
from batchline.api.upload import MultipartForm, UploadHandler
from batchline.client import Batchline
from batchline.models.batches import MAX_METADATA_PAIRS, parse_metadata
from batchline.models.errors import BatchlineError, InvalidInput, NotFound
from batchline.models.files import FileObject
from batchline.models.options import BatchOptions
from batchline.web.dependencies import CurrentClient, FormFields, read_query
from batchline.web.rendering import render_page
from batchline.web.validation_cache import InputCheck, ValidationCache

WINDOW_CHOICES: Final = ("1h", "6h", "24h", "3d", "7d")
DEFAULT_WINDOW: Final = "24h"
EXTRA_FIELDS: Final = frozenset({"endpoint"})

router = APIRouter(route_class=FairRoute)


@router.get("/new")
def show_form(request: Request, client: CurrentClient) -> Response:
    """Show the upload form, or the uploaded file and the result of its check."""
    params = read_query(request, "file", "endpoint")
    if "file" not in params:
        return _upload_page(request, client)
    file = client.files.retrieve(params["file"])
    if file.purpose != "batch":
        raise InvalidInput(f"{file.filename} holds results; a batch is made of an uploaded file", param="file")
    check = _validation_cache(request).get(client, file, params.get("endpoint"))
    if check is not None and check.error_count:
        return _upload_page(request, client, file=file, check=check, is_kept=True)
    return _start_page(request, client, file, check)


@router.post("/new")
async def receive_file(request: Request, client: CurrentClient) -> Response:
    """Store and check a file; one that cannot be a batch is deleted again."""
    uploads: UploadHandler = request.app.state.uploads
    endpoint = None
    try:
        form = MultipartForm(request, extra_fields=EXTRA_FIELDS)
        file = await uploads.handle(form, request, client)
        endpoint = form.fields.get("endpoint", b"").decode(errors="replace") or None
        check = await run_in_thread(_check_or_delete, _validation_cache(request), client, file, endpoint)
    except (BatchlineError, HTTPException) as error:
        http_error = to_http_exception(error)
        return _upload_page(
            request, client, problem=str(http_error.detail), status=http_error.status_code, endpoint=endpoint
        )
    if check is not None and check.error_count:
        return _upload_page(request, client, file=file, check=check, status=400, endpoint=endpoint)
    endpoint_query = {} if endpoint is None else {"endpoint": endpoint}
    return RedirectResponse(f"/new?{urlencode({'file': file.id, **endpoint_query})}", 303)


def _check_or_delete(
    cache: ValidationCache, client: Batchline, file: FileObject, endpoint: str | None
) -> InputCheck | None:
    is_valid = False
    try:
        check = cache.get(client, file, endpoint)
        is_valid = check is None or not check.error_count
        return check
    finally:
        if not is_valid:  # also if the check fails: the user never sees the file's id
            with suppress(NotFound):
                client.files.delete(file.id)


@router.post("/batches")
def create_batch(request: Request, client: CurrentClient, form: FormFields) -> Response:
    """Create the batch and redirect to its page; a repeated form creates it once."""
    fields = {name: str(value) for name, value in form.items()}
    try:
        batch = client.batches.create(
            input_file_id=fields.get("file", ""),
            endpoint=fields.get("endpoint", ""),
            completion_window=fields.get("window", "").strip() or DEFAULT_WINDOW,
            metadata=parse_metadata(fields.get("metadata", "")) or None,
            options=_changed_options(fields),
            idempotency_key=fields.get("once") or None,
        )
    except InvalidInput as error:
        file = client.files.retrieve(fields.get("file", ""))
        if error.param == "endpoint":
            return _upload_page(request, client, problem=str(error), status=400)
        return _start_page(request, client, file, None, fields=fields, problem=error)
    return RedirectResponse(f"/batches/{batch.id}", 303)


def _changed_options(fields: dict[str, str]) -> dict[str, object]:
    """Return the options of the form that are not as it opened."""
    defaults = BatchOptions().model_dump(mode="json")
    return {name: fields[name] for name in defaults if fields.get(name, "") not in {"", str(defaults[name])}}


def _upload_page(
    request: Request,
    client: Batchline,
    *,
    status: int = 200,
    file: FileObject | None = None,
    check: InputCheck | None = None,
    problem: str | None = None,
    endpoint: str | None = None,
    is_kept: bool = False,
) -> Response:
    context: dict[str, Any] = {"file": file, "check": check, "problem": problem, "endpoint": endpoint}
    context |= {"is_kept": is_kept, "endpoints": client.settings.endpoints}
    return render_page(request, "new.html", status=status, **context)


def _start_page(
    request: Request,
    client: Batchline,
    file: FileObject,
    check: InputCheck | None,
    *,
    fields: dict[str, str] | None = None,
    problem: InvalidInput | None = None,
) -> Response:
    """Return the form that starts a batch, with the fields as sent and the problem found."""
    settings = client.settings
    if check is None:
        check = _validation_cache(request).get(client, file, (fields or {}).get("endpoint"))
    values = {"window": DEFAULT_WINDOW, "metadata": "", "endpoint": ""}
    values["once"] = secrets.token_urlsafe(16)  # idempotency key: a double click creates one batch
    windows = []
    for window in WINDOW_CHOICES:
        with suppress(InvalidInput):
            settings.require_window_s(window)
            windows.append(window)
    return render_page(
        request,
        "start.html",
        status=400 if problem else 200,
        file=file,
        check=check,
        sent={**values, **(fields or {})},
        problem=problem,
        endpoints=settings.endpoints,
        windows=windows,
        window_bounds=(settings.min_completion_window, settings.max_completion_window),
        most_pairs=MAX_METADATA_PAIRS,
        options=BatchOptions.model_json_schema()["properties"],
    )


def _validation_cache(request: Request) -> ValidationCache:
    cache: ValidationCache = request.app.state.validation_cache
    return cache

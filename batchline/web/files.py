"""Pages for files: list, preview, download and delete."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from batchline.api.concurrency import FairRoute
from batchline.api.content import ContentQuery, content_response
from batchline.web.batch_list import visible_members
from batchline.web.dependencies import CurrentClient, list_context, read_query
from batchline.web.rendering import render_page

PURPOSES: Final = (("", "All"), ("batch", "Uploaded"), ("batch_output", "Results"))
MAX_SHOWN_BYTES: Final = 64 * 1_024
MAX_SHOWN_LINES: Final = 20
MAX_SHOWN_CHARACTERS: Final = 2_000

router = APIRouter(prefix="/files", route_class=FairRoute)


@router.get("")
def list_files(request: Request, client: CurrentClient) -> Response:
    """Show a page of files."""
    params = read_query(request, "purpose", "search", "member", "after")
    query: dict[str, Any] = {name: value for name, value in params.items() if name != "member"}
    files = client.files.list(**query, member_id=params.get("member"), limit=20)
    return render_page(
        request,
        "files.html",
        **list_context("/files", params, files, "purpose", PURPOSES),
        files=files.data,
        is_filtered=bool(params.keys() - {"after"}),
        members=visible_members(request, client),
    )


@router.get("/{file_id}")
def show_file(request: Request, file_id: str, client: CurrentClient) -> Response:
    """Show a file and its first lines."""
    file = client.files.retrieve(file_id)
    start = b"".join(client.files.content(file_id, end=MAX_SHOWN_BYTES))  # a single line may have gigabytes
    parts = start.decode(errors="replace").split("\n", MAX_SHOWN_LINES)
    lines, rest = parts[:MAX_SHOWN_LINES], parts[MAX_SHOWN_LINES:]
    # Each line with True if it is truncated.
    shown_lines = [
        (line[:MAX_SHOWN_CHARACTERS], len(line) > MAX_SHOWN_CHARACTERS) for line in lines if line.strip()
    ]
    has_more = any(rest) or len(start) == MAX_SHOWN_BYTES
    return render_page(request, "file.html", file=file, lines=shown_lines, has_more=has_more)


@router.get("/{file_id}/content")
def read_content(request: Request, file_id: str, client: CurrentClient) -> Response:
    """Return the file as a download."""
    return content_response(request, file_id, ContentQuery(), client)


@router.get("/{file_id}/delete")
def ask_to_delete(request: Request, file_id: str, client: CurrentClient) -> Response:
    """Ask for confirmation."""
    return render_page(request, "delete_file.html", file=client.files.retrieve(file_id))


@router.post("/{file_id}/delete")
def delete_file(file_id: str, client: CurrentClient) -> Response:
    """Delete the file."""
    client.files.delete(file_id)
    return RedirectResponse("/files", 303)

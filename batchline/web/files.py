"""Files: which there are, what is in one, and deleting it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from batchline.api.content import ContentQuery, content_of
from batchline.api.places import FairRoute
from batchline.operations import Batchline
from batchline.web.asked import Here, query_of
from batchline.web.listing import members_seen
from batchline.web.rendering import page

PURPOSES: Final = (
    ("", "All"),
    ("batch", "Uploaded"),
    ("batch_output", "Results"),
)
SHOWN_BYTES: Final = 64 * 1_024
SHOWN_LINES: Final = 20
SHOWN_LETTERS: Final = 2_000

router = APIRouter(prefix="/files", route_class=FairRoute)


@router.get("")
def list_files(request: Request, client: Here) -> Response:
    """Show a page of files."""
    asked = query_of(request, "purpose", "search", "member", "after")
    query: dict[str, Any] = {name: value for name, value in asked.items() if name != "member"}
    files = client.files.list(**query, member_id=asked.get("member"), limit=20)
    chosen = {name: value for name, value in asked.items() if name != "after"}
    others = {name: value for name, value in chosen.items() if name != "purpose"}
    return page(
        request,
        "files.html",
        files=files.data,
        asked=asked,
        is_filtered=bool(chosen),
        purposes=[
            (
                name,
                "/files?" + urlencode({**others, "purpose": kind} if kind else others),
                kind == chosen.get("purpose", ""),
            )
            for kind, name in PURPOSES
        ],
        members=members_seen(request, client),
        more=f"/files?{urlencode({**chosen, 'after': files.last_id})}" if files.has_more else None,
        first=f"/files?{urlencode(chosen)}" if "after" in asked else None,
    )


@router.get("/{file_id}")
def show_file(request: Request, file_id: str, client: Here) -> Response:
    """Show a file and its first lines."""
    file = client.files.retrieve(file_id)
    lines, has_more = _first_lines(client, file_id)
    return page(request, "file.html", file=file, lines=lines, has_more=has_more)


def _first_lines(client: Batchline, file_id: str) -> tuple[list[tuple[str, bool]], bool]:
    """The first lines, each with whether it is cut, and whether there are more."""
    start = b"".join(client.files.content(file_id, end=SHOWN_BYTES))
    found = start.decode(errors="replace").split("\n", SHOWN_LINES)
    lines, rest = found[:SHOWN_LINES], found[SHOWN_LINES:]
    shown = [(line[:SHOWN_LETTERS], len(line) > SHOWN_LETTERS) for line in lines if line.strip()]
    return shown, any(rest) or len(start) == SHOWN_BYTES


@router.get("/{file_id}/content")
def read_content(request: Request, file_id: str, client: Here) -> Response:
    """Give the file to keep."""
    return content_of(request, file_id, ContentQuery(), client)


@router.get("/{file_id}/delete")
def ask_to_delete(request: Request, file_id: str, client: Here) -> Response:
    """Ask whether the file is to go."""
    return page(request, "delete_file.html", file=client.files.retrieve(file_id))


@router.post("/{file_id}/delete")
def delete_file(file_id: str, client: Here) -> Response:
    """Delete the file."""
    client.files.delete(file_id)
    return RedirectResponse("/files", 303)

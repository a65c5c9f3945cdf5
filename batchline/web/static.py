"""The style, the script and the icon: files of ours, which anybody may have."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from batchline.api.errors import Refusal
from batchline.api.places import FairRoute
from batchline.steps.report.page import FOLDER as REPORT_FOLDER

STATIC: Final = "/static/"
FOLDER: Final = Path(__file__).parent / "static"
PLACES: Final = {
    "look.css": (REPORT_FOLDER / "look.css", "text/css"),
    "web.css": (FOLDER / "web.css", "text/css"),
    "web.js": (FOLDER / "web.js", "text/javascript"),
    "icon.svg": (FOLDER / "icon.svg", "image/svg+xml"),
}
FOR_EVER: Final = "public, max-age=31536000, immutable"

router = APIRouter(route_class=FairRoute)


@router.get("/static/{name}")
def read_static(name: str) -> Response:
    """Give the file; its address changes with it."""
    if name not in PLACES:
        raise Refusal(404, f"there is no file {name[:80]!r}")
    return Response(_content(name), headers={"Cache-Control": FOR_EVER}, media_type=PLACES[name][1])


@router.get("/favicon.ico")
def read_icon() -> Response:
    """Give the icon to what asks for it where it was once."""
    return read_static("icon.svg")


def address_of(name: str) -> str:
    """Where the file is, as it is now."""
    return f"{STATIC}{name}?{hashlib.sha256(_content(name)).hexdigest()[:12]}"


@cache
def _content(name: str) -> bytes:
    return PLACES[name][0].read_bytes()

"""Styles, script and icon of the pages, served without authentication."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from batchline.api.concurrency import FairRoute
from batchline.api.errors import ApiError
from batchline.report.page import TEMPLATE_FOLDER as REPORT_FOLDER

STATIC_PREFIX: Final = "/static/"
STATIC_FOLDER: Final = Path(__file__).parent / "static"
STATIC_FILES: Final = {
    "look.css": (REPORT_FOLDER / "look.css", "text/css"),
    "web.css": (STATIC_FOLDER / "web.css", "text/css"),
    "web.js": (STATIC_FOLDER / "web.js", "text/javascript"),
    "icon.svg": (STATIC_FOLDER / "icon.svg", "image/svg+xml"),
}
CACHE_FOREVER: Final = "public, max-age=31536000, immutable"

router = APIRouter(route_class=FairRoute)


@router.get("/static/{name}")
def read_static(name: str) -> Response:
    """Return the file; its address changes with its content."""
    if name not in STATIC_FILES:
        raise ApiError(404, f"there is no file {name[:80]!r}")
    return Response(
        _read_content(name), headers={"Cache-Control": CACHE_FOREVER}, media_type=STATIC_FILES[name][1]
    )


@router.get("/favicon.ico")
def read_icon() -> Response:
    """Serve the legacy path of the icon."""
    return read_static("icon.svg")


def static_url(name: str) -> str:
    """Return the file's address, with a hash of its content."""
    return f"{STATIC_PREFIX}{name}?{hashlib.sha256(_read_content(name)).hexdigest()[:12]}"


@cache
def _read_content(name: str) -> bytes:
    return STATIC_FILES[name][0].read_bytes()

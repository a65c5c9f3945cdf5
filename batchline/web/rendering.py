"""How pages are made: templates that escape everything, and headers that let nothing foreign run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

from batchline.api.door import Visitor
from batchline.models.status import TERMINAL
from batchline.steps.report.page import FOLDER as REPORT_FOLDER
from batchline.steps.report.page import environment
from batchline.web import words
from batchline.web.static import address_of

FOLDER: Final = Path(__file__).parent / "templates"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With `no-referrer` browsers send their forms from the origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def secured(send: Send) -> Send:
    """Send with those headers, where the answer has none of its own."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return with_headers


def page(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **found: Any
) -> Response:
    """The page that the template makes of what was found."""
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    text = (
        templates().get_template(template).render(visitor=visitor, here=request.url.path, now=time.time(), **found)
    )
    # A lone half of a surrogate pair, which a body may hold, is no text that could be sent.
    content = text.encode("utf-8", errors="replace")
    return Response(content, status, headers, media_type="text/html")


@cache
def templates() -> Environment:
    """The pages' templates, and those of the report, whose charts they show."""
    made = environment(FileSystemLoader([FOLDER, REPORT_FOLDER]))
    made.filters.update(words.FILTERS)
    made.globals.update(static=address_of, TERMINAL=TERMINAL)
    return made

"""Render pages: templates with automatic escaping, and headers that block foreign content."""

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

from batchline.api.auth import Principal
from batchline.models.formatting import format_day, format_size, format_span, replace_controls
from batchline.models.status import TERMINAL_STATUSES
from batchline.report.page import TEMPLATE_FOLDER as REPORT_FOLDER
from batchline.report.page import build_environment
from batchline.web.static_files import static_url

TEMPLATES_FOLDER: Final = Path(__file__).parent / "templates"
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With `no-referrer` browsers send their forms from the origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def with_security_headers(send: Send) -> Send:
    """Return a `send` that adds the security headers that the response lacks."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def render_page(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> Response:
    """Return the rendered template."""
    principal: Principal | None = getattr(request.state, "principal", None)
    text = (
        template_environment()
        .get_template(template)
        .render(principal=principal, here=request.url.path, now=time.time(), **context)
    )
    # Bodies may contain lone surrogates, which UTF-8 cannot encode.
    content = text.encode("utf-8", errors="replace")
    return Response(content, status, headers, media_type="text/html")


def describe_status(status: str) -> str:
    """Return a status in a word or two."""
    words = {"validating": "Checking", "in_progress": "In progress", "finalizing": "Writing files"}
    return words.get(status, status.capitalize())


def describe_time_left(at: float, now: float) -> str:
    """Return the time left until `at`, or since then."""
    return f"{format_span(at - now)} left" if at > now else f"over by {format_span(now - at)}"


@cache
def template_environment() -> Environment:
    """Return the templates of the pages, and those of the report, whose charts the pages include."""
    env = build_environment(FileSystemLoader([TEMPLATES_FOLDER, REPORT_FOLDER]))
    env.filters.update(
        day=format_day, shown=replace_controls, size=format_size, state=describe_status, until=describe_time_left
    )
    env.globals.update(static=static_url, TERMINAL=TERMINAL_STATUSES)
    return env

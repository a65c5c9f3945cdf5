"""Error pages for browsers; other clients get JSON."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.errors import error_response, to_http_exception
from batchline.models.errors import BatchlineError
from batchline.web.rendering import render_page

TITLES: Final = {
    400: "Invalid request",
    401: "A key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    408: "Too slow",
    409: "Not now",
    413: "Too large",
    416: "Not found",
    429: "Too much at once",
    503: "Not available",
}
SERVER_ERROR_TITLE: Final = "The server failed"
ADVICE: Final = {
    404: "It may have been deleted, or belong to another member.",
    409: "Check its present state, then decide again.",
    429: "Wait a little, then reload this page.",
    500: "Reload this page; if it fails again, report it to the operator of the server.",
    503: "Nothing is lost. Reload this page in a little while.",
}


def accepts_html(request: Request) -> bool:
    """Return True for a browser; programs get errors as JSON."""
    return "text/html" in request.headers.get("accept", "")


def render_error(request: Request, error: Exception) -> Response:
    """Return the response for an error: a page with the reason and advice, or JSON."""
    http_error = to_http_exception(error)
    if http_error.status_code == 404 and not isinstance(error, BatchlineError) and not accepts_html(request):
        http_error.detail = f"there is nothing at {request.url.path[:200]}; the API is at /v1"
    if not accepts_html(request):
        return error_response(http_error)
    status, message = http_error.status_code, str(http_error.detail)
    if message == "Not Found":  # Starlette's text for an unknown path
        message = "there is no such page"
    return render_page(
        request,
        "error.html",
        status=status,
        headers=http_error.headers,
        title=TITLES.get(status, SERVER_ERROR_TITLE),
        message=message,
        advice=ADVICE.get(status),
    )


def register_error_handlers(pages: FastAPI) -> None:
    """Render every error of the pages with `render_error`."""

    async def handle(request: Request, error: Exception) -> Response:
        return render_error(request, error)

    for error_class in (HTTPException, RequestValidationError, BatchlineError, Exception):
        pages.add_exception_handler(error_class, handle)

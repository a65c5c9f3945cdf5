"""Errors as pages, for whoever can look at one."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.errors import answer_of, told
from batchline.models.errors import BatchlineError
from batchline.web.rendering import page

TITLES: Final = {
    400: "That cannot be used",
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
FAULT: Final = "The server failed"
WHAT_TO_DO: Final = {
    404: "It may have been deleted, or it is somebody else's.",
    409: "Look at it as it is now, and decide again.",
    429: "Wait a little, then reload this page.",
    500: "Reload this page; if it fails again, tell whoever runs the server.",
    503: "Nothing is lost. Reload this page in a little while.",
}


def wants_page(request: Request) -> bool:
    """Whether a browser asks; programs get errors as JSON."""
    return "text/html" in request.headers.get("accept", "")


def error_answer(request: Request, error: Exception) -> Response:
    """The answer for an error: a page that says what is wrong and what to do, or JSON."""
    found = told(error)
    if found.status_code == 404 and not isinstance(error, BatchlineError) and not wants_page(request):
        found.detail = f"there is nothing at {request.url.path[:200]}; the API is at /v1"
    if not wants_page(request):
        return answer_of(found)
    status, message = found.status_code, str(found.detail)
    if message == "Not Found":
        message = "there is no such page"
    return page(
        request,
        "error.html",
        status=status,
        headers=found.headers,
        title=TITLES.get(status, FAULT),
        message=message,
        advice=WHAT_TO_DO.get(status),
    )


def handle_errors(pages: FastAPI) -> None:
    """Let every error of the pages come out so."""

    async def handle(request: Request, error: Exception) -> Response:
        return error_answer(request, error)

    for kind in (HTTPException, RequestValidationError, BatchlineError, Exception):
        pages.add_exception_handler(kind, handle)

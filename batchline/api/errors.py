"""Convert every error to OpenAI's format: an HTTP status and an object with message, type, param and code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from batchline.api.http_methods import allowed_methods
from batchline.api.request_ids import request_id
from batchline.models.errors import (
    BatchlineError,
    Conflict,
    Interrupted,
    InvalidInput,
    LimitReached,
    NotFound,
    StorageFault,
    TooLarge,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 30
"""Seconds after which to retry a request refused because too many batches are open."""

INVALID_REQUEST: Final = "invalid_request_error"

_STATUS_AND_CODE_OF_ERROR: Final[Mapping[type[BatchlineError], tuple[int, str | None]]] = {
    TooLarge: (413, "file_too_large"),
    InvalidInput: (400, None),
    NotFound: (404, None),
    LimitReached: (429, "too_many_open_batches"),
    Conflict: (409, "conflict"),
}
"""Status and code of client errors; the first matching class counts. Others are server errors."""

_CODE_OF_VALIDATION_ERROR: Final = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}
"""From pydantic's error types to OpenAI's codes; any other is `invalid_value`."""

_OPENAI_MESSAGES: Final = {
    "unknown_parameter": "Unknown parameter: '{}'.",
    "missing_required_parameter": "Missing required parameter: '{}'.",
}
"""OpenAI's wording by code."""

_STATUS_DESCRIPTIONS: Final = {
    400: "The request is invalid.",
    401: "The key is missing or invalid.",
    403: "The key does not allow this.",
    404: "The object does not exist, or belongs to another member.",
    405: "The path does not support this method.",
    408: "The request came too slowly.",
    409: "The object's state does not allow this.",
    413: "The body or the file is too large.",
    416: "The range is outside the file.",
    429: "Too many requests, or too many open batches; `Retry-After` is the seconds to wait.",
    500: "The server failed.",
    503: "Storage or the database does not respond, or the server is overloaded; try again.",
}
STATUS_HEADERS: Final = {
    status: {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    for status, headers in {
        "401": {"WWW-Authenticate": "`Bearer`."},
        "409": {"x-should-retry": "`false`, for clients that retry conflicts."},
        "429": {"Retry-After": "Seconds to wait before retrying."},
        "503": {"Retry-After": "Seconds to wait before retrying."},
    }.items()
}
"""Response headers by status, for the OpenAPI document."""

_COMMON_STATUSES: Final = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)


class ErrorObject(BaseModel):
    """The details of an error."""

    message: str = Field(description="The error in words.")
    type: str = Field(description="The kind of error.", examples=[INVALID_REQUEST])
    param: str | None = Field(description="The parameter that caused it, if one did.")
    code: str | None = Field(
        description="The error for programs, if it has a code: 400 `invalid_value`, "
        "`unknown_parameter`, `missing_required_parameter`, `invalid_json`; 401 `invalid_api_key`; "
        "403 `insufficient_permissions`; 404 `unknown_url`; 405 `method_not_supported`; 408 `request_timeout`; "
        "409 `conflict`; 413 `file_too_large`, `request_too_large`; 429 `rate_limit_exceeded`, "
        "`too_many_open_batches`."
    )


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorObject


class ApiError(HTTPException):
    """An error response raised by the API itself."""

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.param = param
        self.code = code


def openapi_errors(*extra_statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for the OpenAPI document, including those common to all routes."""
    statuses = sorted({*_COMMON_STATUSES, *extra_statuses})
    return {status: {"model": ErrorResponse, "description": _STATUS_DESCRIPTIONS[status]} for status in statuses}


def error_response(error: Exception) -> Response:
    """Return the response for an error."""
    http_error = to_http_exception(error)
    status, headers = http_error.status_code, dict(http_error.headers or {})
    if status == 409:
        headers["x-should-retry"] = "false"  # OpenAI's clients retry a 409 otherwise
    param = getattr(http_error, "param", None)
    body = ErrorObject(
        message=_escape_surrogates(str(http_error.detail)),
        type="requests" if status == 429 else "server_error" if status >= 500 else INVALID_REQUEST,
        param=None if param is None else _escape_surrogates(str(param)),
        code=getattr(http_error, "code", None),
    )
    content = ErrorResponse(error=body).model_dump_json()
    return Response(content, status, headers, media_type="application/json")


def to_http_exception(error: Exception) -> HTTPException:
    """Return the error for the client. Server errors are logged, and returned without their details."""
    if isinstance(error, RequestValidationError):
        return _from_validation_error(error)
    if isinstance(error, HTTPException):
        return error
    for error_class, (status, code) in _STATUS_AND_CODE_OF_ERROR.items():
        if isinstance(error, error_class):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else None
            return ApiError(status, str(error), param=getattr(error, "param", None), code=code, headers=headers)
    is_outage = isinstance(error, StorageFault | Interrupted)
    # The server logs the traceback of an error that is not ours.
    is_logged_here = isinstance(error, BatchlineError) and not is_outage
    log.error("%s: %s", request_id.get(), error, exc_info=error if is_logged_here else None)
    if is_outage:
        return service_unavailable("storage or the database does not respond; try again")
    return ApiError(500, f"the server failed; its log has the details of {request_id.get()}")


def service_unavailable(message: str) -> ApiError:
    """Return a 503 for a request that may succeed a little later."""
    return ApiError(503, message, headers={"Retry-After": "5"})


def _from_validation_error(error: RequestValidationError) -> ApiError:
    """Return the first validation error of the request, as OpenAI does."""
    detail = error.errors()[0]
    code, message = _CODE_OF_VALIDATION_ERROR.get(str(detail["type"]), "invalid_value"), str(detail["msg"])
    if code == "invalid_json":
        return ApiError(400, f"the body is not JSON: {detail['ctx']['error']}", code=code)
    if tuple(detail["loc"]) == ("body",):
        return ApiError(400, "send a JSON object, with Content-Type: application/json", code=code)
    param, message = ".".join(map(str, detail["loc"][1:])) or None, message.removeprefix("Value error, ")
    if param is not None and code in _OPENAI_MESSAGES:
        message = _OPENAI_MESSAGES[code].format(param)
    elif param is not None and not message.startswith(f"{param} "):
        message = f"{param}: {message}"
    return ApiError(400, message, param=param, code=code)


def _escape_surrogates(text: str) -> str:
    """Return the text with lone surrogates escaped: JSON may contain them, UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def _reword_routing_error(request: Request, error: HTTPException) -> HTTPException:
    """Return Starlette's routing error in OpenAI's wording."""
    request_line = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"Invalid URL ({request_line}); see /openapi.json", code="unknown_url")
    if error.status_code == 405:
        # Starlette lists only the methods of the first route that matches the path.
        allowed = allowed_methods(request.app.openapi(), request.url.path)
        headers = error.headers if allowed is None else {"Allow": allowed}
        return ApiError(405, f"Not allowed: {request_line}", code="method_not_supported", headers=headers)
    return error


def register_error_handlers(app: FastAPI) -> None:
    """Convert every error of the app to OpenAI's format."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and not isinstance(error, ApiError):
            error = _reword_routing_error(request, error)
        return error_response(error)

    for error_class in (HTTPException, RequestValidationError, BatchlineError, Exception):
        app.add_exception_handler(error_class, handle)

"""Why a request failed, and whether another attempt may help.

A failed attempt is data: the transport classifies what the wire did, `code_for_status` what the server said.
"""

from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """The `error.code` of a line of the error file."""

    INVALID_REQUEST = "invalid_request"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION_ERROR = "connection_error"
    INVALID_RESPONSE = "invalid_response"
    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_FAILED = "batch_failed"


RETRYABLE_STATUSES: Final = frozenset({408, 409, 425, 429})
"""The 4xx that are tried again, beside every 5xx."""

AUTH_FAILURE_STATUSES: Final = frozenset({401, 403})
"""Answers that say the key is wrong rather than the request."""

BATCH_END_CODES: Final = frozenset({ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED, ErrorCode.BATCH_FAILED})
"""Codes of requests that the batch's own end settled."""

UNANSWERED_CODES: Final = frozenset({ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED})
"""Codes of requests that the end of the window or a cancel left unanswered; they do not count as failed."""


def code_for_status(status_code: int) -> ErrorCode | None:
    """The code of an answer with that HTTP status; none for a 2xx."""
    if 200 <= status_code < 300:
        return None
    if status_code == 429:
        return ErrorCode.RATE_LIMITED
    if status_code in {408, 425}:
        return ErrorCode.TIMEOUT if status_code == 408 else ErrorCode.SERVER_ERROR
    if 400 <= status_code < 500:
        return ErrorCode.INVALID_REQUEST
    if status_code >= 500:
        return ErrorCode.SERVER_ERROR
    return ErrorCode.INVALID_RESPONSE


def is_retryable(code: ErrorCode, status_code: int | None) -> bool:
    """Whether another attempt may help; `status_code` is None where no answer came."""
    if code is ErrorCode.INVALID_REQUEST:
        return status_code in RETRYABLE_STATUSES
    return code not in BATCH_END_CODES

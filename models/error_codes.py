"""Classifies failed requests and decides if they can be retried.

A failed attempt is data: the transport classifies connection failures, `code_for_status` HTTP responses.
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
    EMPTY_RESPONSE = "empty_response"
    CONTENT_FILTER = "content_filter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TRUNCATED = "truncated"
    INVALID_OUTPUT = "invalid_output"
    BATCH_EXPIRED = "batch_expired"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_FAILED = "batch_failed"


RETRYABLE_STATUSES: Final = frozenset({408, 409, 425, 429})
"""The 4xx statuses that are retried, besides every 5xx."""

BATCH_END_CODES: Final = frozenset({ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED, ErrorCode.BATCH_FAILED})
"""Codes of requests that were settled by the end of the batch."""

UNANSWERED_CODES: Final = frozenset({ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED})
"""Codes of requests left unanswered by an expired window or a cancel; they do not count as failed."""


def code_for_status(status_code: int) -> ErrorCode | None:
    """Return the code of a response with the HTTP status; None for a 2xx."""
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

"""Calls and their results."""

import msgspec
from msgspec import Raw

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Mark
from batchline.models.usage import Usage


class Call(msgspec.Struct, kw_only=True, gc=False):
    """A request to send: an input line's `custom_id` and body as JSON text, and its destination."""

    line: int
    custom_id: Raw
    model: str | None
    path: str
    body: Raw
    upstream: str
    read_at: float = 0.0


class CallResult(msgspec.Struct, kw_only=True, gc=False):
    """The result of a settled call; `code` is None for a success. Durations are in seconds, of the last attempt.

    `body` is JSON text on one line, or None if no reply came. `attempts` counts all that were started; `retries`
    has the error code of each one before the last. `started_at` is in Unix seconds. A success with a `mark` has a
    flaw, which `message` describes. `is_retryable` is True for a failure that another attempt may turn into a
    success.
    """

    call: Call
    code: ErrorCode | None
    message: str | None = None
    status_code: int | None = None
    body: bytes | None = None
    request_id: str | None = None
    usage: Usage | None = None
    attempts: int = 0
    retries: tuple[ErrorCode, ...] = ()
    started_at: float | None = None
    queued_s: float | None = None
    duration_s: float | None = None
    ttfb_s: float | None = None
    wasted_tokens: int = 0
    finish_reason: str | None = None
    mark: Mark | None = None
    is_retryable: bool = False

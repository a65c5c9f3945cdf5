"""The state of one call across its attempts, and its conversion to a result."""

import asyncio
from typing import Any

import msgspec

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Judgement, RetryClass, retry_class_of_failure
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.call_results import Call, CallResult
from batchline.upstream.chunk_queue import ChunkQueue
from batchline.upstream.rate_limits import Reservation
from batchline.upstream.transports.base import HttpReply, TransportFailure


class PendingCall(msgspec.Struct, eq=False, gc=False):
    """A call in flight or waiting for an attempt, with the record of its earlier attempts."""

    call: Call
    queue: ChunkQueue
    session: BatchSession
    attempts: int = 0
    uncounted_attempts: int = 0
    retries: tuple[ErrorCode, ...] = ()
    wasted_tokens: int = 0
    first_sent_at: float = 0.0
    started_at: float = 0.0
    is_aborted: bool = False
    task: asyncio.Task[None] | None = None
    reservation: Reservation | None = None
    was_repeated: bool = False
    """True once a complete reply was wrong, which is worth one further attempt."""

    rate_limited: int = 0
    """Replies in a row that asked to come back later."""

    def belongs_to(self, owner: object) -> bool:
        """Return True if the call belongs to that session or chunk queue."""
        return self.session is owner or self.queue is owner

    def to_result(self, judgement: Judgement, reply: HttpReply, duration_s: float) -> CallResult:
        """Return the result of a call that got a complete reply, a success or a failure."""
        code, retry = judgement.code, judgement.retry
        return self._build_result(
            code,
            judgement.message,
            status_code=reply.status_code,
            body=judgement.body,
            request_id=reply.request_id,
            usage=judgement.usage if code is None else None,
            duration_s=duration_s,
            ttfb_s=reply.ttfb_s,
            finish_reason=judgement.finish_reason,
            mark=judgement.mark,
            is_retryable=retry is RetryClass.AS_STATUS or (retry is RetryClass.ONCE and not self.was_repeated),
        )

    def to_failed_result(self, failure: TransportFailure, duration_s: float) -> CallResult:
        """Return the result of a call whose last attempt got no complete reply."""
        return self._build_result(
            failure.code,
            f"{failure.message} (attempt {self.attempts})",
            duration_s=duration_s,
            is_retryable=retry_class_of_failure(failure.code) is RetryClass.AS_STATUS,
        )

    def to_error_result(self, error: Exception) -> CallResult:
        """Return the result of a call that failed by a bug of this program, so that its line is not lost."""
        message = f"the request could not be sent: {type(error).__name__}"
        return self._build_result(ErrorCode.CONNECTION_ERROR, message)

    def _build_result(self, code: ErrorCode | None, message: str | None, **fields: Any) -> CallResult:
        return CallResult(
            call=self.call,
            code=code,
            message=message,
            attempts=self.attempts,
            retries=self.retries,
            started_at=self.started_at,
            queued_s=self.first_sent_at - self.call.read_at if self.first_sent_at else None,
            wasted_tokens=self.wasted_tokens,
            **fields,
        )

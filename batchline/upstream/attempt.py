"""One call's way through its tries, and the answer that comes of it."""

import asyncio

from batchline.models.failures import ErrorCode
from batchline.upstream.answers import Answer, Call, Reading
from batchline.upstream.run import Feed
from batchline.upstream.transport import Reply, TransportFailure


class Attempt:
    """A call under way or waiting for its next try, and what was tried before."""

    __slots__ = (
        "aborted", "call", "feed", "first_at", "free", "number", "retries", "run", "started_at",
        "task", "tokens_held", "wasted",
    )  # fmt: skip

    def __init__(self, call: Call, feed: Feed) -> None:
        self.call = call
        self.feed = feed
        self.run = feed.run
        self.number = 0
        self.free = 0
        self.retries: tuple[ErrorCode, ...] = ()
        self.wasted = 0
        self.first_at = 0.0
        self.started_at = 0.0
        self.aborted = False
        self.task: asyncio.Task[None] | None = None
        self.tokens_held = 0

    def answered(self, reading: Reading, reply: Reply, duration_s: float) -> Answer:
        """The answer of a call that got a reply, good or bad."""
        code = reading.code
        return Answer(
            call=self.call,
            code=code,
            message=reading.message,
            status_code=reply.status_code,
            body=reading.body,
            request_id=reply.request_id,
            usage=reading.usage if code is None else None,
            attempts=self.number,
            retries=self.retries,
            started_at=self.started_at,
            queued_s=self.first_at - self.call.read_at,
            duration_s=duration_s,
            ttfb_s=reply.ttfb_s,
            wasted_tokens=self.wasted,
        )

    def failed(self, failure: TransportFailure, duration_s: float) -> Answer:
        """The answer of a call whose last try got no whole reply."""
        return Answer(
            call=self.call,
            code=failure.code,
            message=f"{failure.message} (attempt {self.number})",
            attempts=self.number,
            retries=self.retries,
            started_at=self.started_at,
            queued_s=self.first_at - self.call.read_at,
            duration_s=duration_s,
            wasted_tokens=self.wasted,
        )

    def broken(self, error: Exception) -> Answer:
        """The answer of a call that met a fault of this program, so that it is not lost."""
        return Answer(
            call=self.call,
            code=ErrorCode.CONNECTION_ERROR,
            message=f"the request could not be sent: {type(error).__name__}",
            attempts=self.number,
            retries=self.retries,
            started_at=self.started_at,
        )

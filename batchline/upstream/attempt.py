"""One call's way through its tries, and the answer that comes of it."""

import asyncio

import msgspec

from batchline.models.failures import ErrorCode
from batchline.upstream.answers import Answer, Call, Reading
from batchline.upstream.rates import Held
from batchline.upstream.run import Feed, Run
from batchline.upstream.transport import Reply, TransportFailure


class Attempt(msgspec.Struct, eq=False, gc=False):
    """A call under way or waiting for its next try, and what was tried before."""

    call: Call
    feed: Feed
    run: Run
    number: int = 0
    free: int = 0
    retries: tuple[ErrorCode, ...] = ()
    wasted: int = 0
    first_at: float = 0.0
    started_at: float = 0.0
    aborted: bool = False
    task: asyncio.Task[None] | None = None
    held: Held | None = None

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

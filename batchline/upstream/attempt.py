"""One call's way through its tries, and the answer that comes of it."""

import asyncio
from typing import Any

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
        """Return the answer of a call that got a reply, good or bad."""
        code = reading.code
        return self._answer(
            code,
            reading.message,
            status_code=reply.status_code,
            body=reading.body,
            request_id=reply.request_id,
            usage=reading.usage if code is None else None,
            duration_s=duration_s,
            ttfb_s=reply.ttfb_s,
        )

    def failed(self, failure: TransportFailure, duration_s: float) -> Answer:
        """Return the answer of a call whose last try got no whole reply."""
        return self._answer(failure.code, f"{failure.message} (attempt {self.number})", duration_s=duration_s)

    def broken(self, error: Exception) -> Answer:
        """Return the answer of a call that met a fault of this program, so that it is not lost."""
        message = f"the request could not be sent: {type(error).__name__}"
        return self._answer(ErrorCode.CONNECTION_ERROR, message)

    def _answer(self, code: ErrorCode | None, message: str | None, **fields: Any) -> Answer:
        return Answer(
            call=self.call,
            code=code,
            message=message,
            attempts=self.number,
            retries=self.retries,
            started_at=self.started_at,
            queued_s=self.first_at - self.call.read_at if self.first_at else None,
            wasted_tokens=self.wasted,
            **fields,
        )

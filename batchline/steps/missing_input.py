"""Requests that can be read no more: a batch that is to end ends without its input.

An input that is gone or has changed stops a batch, which can continue once the input is back. A batch that is
cancelled or expired needs nothing of its input but the custom_ids of unanswered requests, and ends without these.
"""

import time
from collections.abc import Iterator
from itertools import count, islice
from typing import Final

from msgspec import Raw

from batchline.analytics.request_metrics import RequestMetrics
from batchline.models.errors import InputChanged
from batchline.models.plan import Chunk
from batchline.steps.result_rows import build_metrics, build_result_line
from batchline.steps.spool import Spool
from batchline.upstream.batch_session import BatchSession, StopReason
from batchline.upstream.call_results import Call, CallResult

DEADLINE_NOTICE_TIMEOUT_S: Final = 5.0
"""Seconds within which a run notices that its window has closed."""

EMPTY_CUSTOM_ID: Final = Raw(b'""')


class ReadableCalls(Iterator[list[Call]]):
    """The calls as far as they can be read; `error` is what ended them early, if something did."""

    def __init__(self, calls: Iterator[list[Call]]) -> None:
        self.error: InputChanged | None = None
        self._calls = calls

    def __next__(self) -> list[Call]:
        """The next calls."""
        try:
            return next(self._calls)
        except InputChanged as error:
            self.error = error
            raise StopIteration from None


def find_final_stop(session: BatchSession) -> StopReason | None:
    """Why the run ends its unsettled requests (cancelled, expired, refused); None if it leaves them open."""
    if session.deadline is not None and time.time() >= session.deadline:
        give_up_at = time.monotonic() + DEADLINE_NOTICE_TIMEOUT_S
        while session.stop_reason is None and time.monotonic() < give_up_at:
            time.sleep(0.01)
    return None if session.is_interrupted else session.stop_reason


def require_final_stop(session: BatchSession, error: InputChanged) -> StopReason:
    """Why the run ends its unsettled requests; raises the error if it does not end them."""
    stop = find_final_stop(session)
    if stop is None:
        raise InputChanged(
            f"{error}; or end this one with `batchline batches cancel {session.batch_id}`, which keeps its answers"
        ) from error
    return stop


def build_missing_results(
    chunk: Chunk, spool: Spool, *, prefix: str, stop: StopReason
) -> tuple[list[RequestMetrics], list[bytes]]:
    """Figures and error lines of the chunk's requests that are not in the spool, with an empty `custom_id`.

    Line numbers are the true ones unless the chunk has blank lines, which only its input could tell.
    """
    numbers = iter(chunk.only) if chunk.only is not None else count(chunk.first_line)
    missing_lines = islice((number for number in numbers if number not in spool), chunk.requests - len(spool))
    message = f"{stop.message}; its custom_id is unknown, as the input can no longer be read"
    metrics, lines = [], []
    for number in missing_lines:
        call = Call(line=number, custom_id=EMPTY_CUSTOM_ID, model=None, path="", body=Raw(b"{}"), upstream="")
        result = CallResult(call=call, code=stop.code, message=message)
        metrics.append(build_metrics(result))
        lines.append(build_result_line(prefix, result))
    return metrics, lines

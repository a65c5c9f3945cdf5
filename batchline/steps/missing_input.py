"""Ends a cancelled or expired batch whose input can no longer be read.

An input that is gone or has changed stops a batch, which can continue once the input is restored. A batch that
is cancelled or expired needs only the custom_ids of unanswered requests from it, and ends without these.
"""

import time
from itertools import count, islice
from typing import Final

from msgspec import Raw

from batchline.analytics.request_metrics import RequestMetrics
from batchline.models.errors import InputChanged
from batchline.models.plan import Chunk
from batchline.steps.result_rows import build_metrics, build_result_line
from batchline.steps.spool import Spool
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.call_results import Call, CallResult
from batchline.upstream.stop_reason import StopReason

DEADLINE_NOTICE_TIMEOUT_S: Final = 5.0
"""Seconds within which a session notices that its window has closed."""

EMPTY_CUSTOM_ID: Final = Raw(b'""')


def find_final_stop(session: BatchSession) -> StopReason | None:
    """Return why the session settles all open requests (cancelled, expired, refused), or None if it does not."""
    if session.deadline is not None and time.time() >= session.deadline:
        give_up_at = time.monotonic() + DEADLINE_NOTICE_TIMEOUT_S
        # The dispatcher's thread stops the session when the window closes, a moment later than this check.
        while session.stop_reason is None and time.monotonic() < give_up_at:
            time.sleep(0.01)
    return None if session.is_interrupted else session.stop_reason


def require_final_stop(session: BatchSession, error: InputChanged) -> StopReason:
    """Return the reason as `find_final_stop` does; raises the input error if there is none."""
    stop = find_final_stop(session)
    if stop is None:
        raise InputChanged(
            f"{error}; or end this one with `batchline batches cancel {session.batch_id}`, which keeps its answers"
        ) from error
    return stop


def build_missing_results(
    chunk: Chunk, spool: Spool, *, prefix: str, stop: StopReason
) -> tuple[list[RequestMetrics], list[bytes]]:
    """Return metrics and error lines of the chunk's requests not in the spool, with an empty `custom_id`.

    Line numbers are exact unless the chunk has blank lines, which cannot be known without its input.
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

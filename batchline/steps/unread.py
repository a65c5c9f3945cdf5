"""Requests that can be read no more: a batch that is to end ends without its input.

An input that is gone or has changed stops a batch, which can continue once the input is back. A batch that is
cancelled or expired needs nothing of its input but the custom_ids of unanswered requests, and ends without these.
"""

import time
from collections.abc import Iterator
from itertools import count, islice
from typing import Final

from msgspec import Raw

from batchline.models.errors import InputChanged
from batchline.models.lines import result_line
from batchline.models.plan import Chunk
from batchline.steps.figures import Figures, figures_of
from batchline.steps.spool import Spool
from batchline.upstream.answers import Answer, Call
from batchline.upstream.run import Run, Stop

NOTICED_S: Final = 5.0
"""Seconds within which a run notices that its window has closed."""

UNKNOWN: Final = Raw(b'""')


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


def ending_of(run: Run) -> Stop | None:
    """Why the run ends its unsettled requests (cancelled, expired, refused); None if it leaves them open."""
    if run.deadline is not None and time.time() >= run.deadline:
        give_up_at = time.monotonic() + NOTICED_S
        while run.stopped is None and time.monotonic() < give_up_at:
            time.sleep(0.01)
    return None if run.interrupted else run.stopped


def end_without_input(run: Run, error: InputChanged) -> Stop:
    """Why the run ends its unsettled requests; raises the error if it does not end them."""
    stop = ending_of(run)
    if stop is None:
        raise InputChanged(
            f"{error}; or end this one with `batchline batches cancel {run.batch_id}`, which keeps its answers"
        ) from error
    return stop


def unread_lines(chunk: Chunk, spool: Spool, *, prefix: str, stop: Stop) -> tuple[list[Figures], list[bytes]]:
    """Figures and error lines of the chunk's requests that are not in the spool, with an empty `custom_id`.

    Line numbers are the true ones unless the chunk has blank lines, which only its input could tell.
    """
    numbers = iter(chunk.only) if chunk.only is not None else count(chunk.first_line)
    left = islice((number for number in numbers if number not in spool), chunk.requests - len(spool))
    message = f"{stop.message}; its custom_id is unknown, as the input can no longer be read"
    rows, lines = [], []
    for number in left:
        call = Call(line=number, custom_id=UNKNOWN, model=None, path="", body=Raw(b"{}"), upstream="")
        rows.append(figures_of(Answer(call=call, code=stop.code, message=message)))
        lines.append(
            result_line(
                request_id=f"{prefix}{number}",
                custom_id=UNKNOWN,
                status_code=None,
                answer_id=None,
                body=None,
                error_code=stop.code,
                message=message,
            )
        )
    return rows, lines

"""Shows a running batch: a live line on a terminal, a plain one now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchline.steps.engine import Engine
from batchline.steps.hold import BatchHold, held

LIVE_S = 0.25
PLAIN_S = 10.0


@contextlib.contextmanager
def progress_of(engine: Engine, batch_id: str, console: Console) -> Iterator[None]:
    """Show the batch's progress until the block ends."""
    meter = _Meter(engine, batch_id)
    over = threading.Event()
    target = _live if console.is_terminal else _plain
    thread = threading.Thread(target=target, args=(meter, console, over), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _live(meter: "_Meter", console: Console, over: threading.Event) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not over.wait(LIVE_S):
            live.update(Text(meter.line()), refresh=True)


def _plain(meter: "_Meter", console: Console, over: threading.Event) -> None:
    while not over.wait(PLAIN_S):
        console.print(meter.line(), markup=False)


class _Meter:
    """Turns a hold's counters into a line for a person."""

    def __init__(self, engine: Engine, batch_id: str) -> None:
        self._records = engine.records
        self._batch_id = batch_id
        self._total = 0
        self._began: float | None = None

    def line(self) -> str:
        """Where the batch is now."""
        hold = held(self._batch_id)
        if hold is None:
            return "waiting to start"
        if not self._total:
            self._total = self._records.get_batch(self._batch_id).total
        if not self._total:
            return "reading the input"
        return self._running(hold)

    def _running(self, hold: BatchHold) -> str:
        now = time.monotonic()
        self._began = self._began or now
        completed, failed = hold.counts()
        progress = hold.progress()
        elapsed = max(now - self._began, 1e-3)
        rate = (progress.completed + progress.failed) / elapsed
        left = self._total - completed - failed
        words = [
            f"{completed + failed:,}/{self._total:,} done",
            f"{failed:,} failed",
            f"{rate:,.0f}/s",
            f"{progress.total_tokens:,} tokens",
            f"{progress.in_flight} in flight",
        ]
        if not left:
            words.append("writing the files")
        elif rate:
            words.append(f"about {_span(left / rate)} left")
        if progress.paused:
            words.append(progress.paused)
        return " · ".join(words)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"

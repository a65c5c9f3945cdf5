"""Show the progress of a command: a live display on a terminal, else a line now and then."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from batchline.engine.lease import active_lease
from batchline.engine.progress_meter import ProgressMeter, ProgressSnapshot
from batchline.models.formatting import span

REFRESH_INTERVAL_S = 0.25
SAMPLE_INTERVAL_S = 1.0
MIN_PLAIN_INTERVAL_S = 5.0
MAX_PLAIN_INTERVAL_S = 60.0


class Progress:
    """Displays the current activity until the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._doing: str | None = None
        self._since = time.monotonic()
        self._batch_id: str | None = None
        self._meter: ProgressMeter | None = None
        self._stopping = threading.Event()
        # Not `console.is_terminal`, which is also true for a log file if FORCE_COLOR is set.
        live = console.file.isatty() and not console.is_dumb_terminal
        self._thread = threading.Thread(
            target=self._run_live_display if live else self._print_plain_lines, name="progress", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def doing(self, what: str) -> None:
        """Show this text until there are counters or another text."""
        self._since = time.monotonic()
        self._doing = what

    def follow(self, batch_id: str) -> None:
        """Show the batch's counters as soon as this process runs it."""
        self._batch_id = batch_id

    def _reading(self) -> ProgressSnapshot | None:
        lease = active_lease(self._batch_id) if self._batch_id else None
        if lease is None:
            self._meter = None
            return None
        if self._meter is None:
            self._meter = ProgressMeter(lease)
            self.doing("checking the input")
        reading = self._meter.read()
        if reading is not None:
            self.doing("finishing")
        return reading

    def _run_live_display(self) -> None:
        spinner = Spinner("line")
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._stopping.wait(REFRESH_INTERVAL_S):
                live.update(self._display(spinner), refresh=True)

    def _display(self, spinner: Spinner) -> RenderableType:
        reading = self._reading()
        if reading is not None:
            return _bar(reading)
        if self._doing is None:
            return ""
        spinner.update(text=Text(f"{self._doing} · {span(time.monotonic() - self._since)}"))
        return spinner

    def _print_plain_lines(self) -> None:
        """Print a line per long activity, then at growing intervals of up to a minute."""
        began = due = time.monotonic()
        due += MIN_PLAIN_INTERVAL_S
        while not self._stopping.wait(SAMPLE_INTERVAL_S):
            reading = self._reading()
            now = time.monotonic()
            if now >= due:
                self._console.print(self._line(reading), markup=False)
                due = now + min(MAX_PLAIN_INTERVAL_S, max(MIN_PLAIN_INTERVAL_S, (now - began) / 10))

    def _line(self, reading: ProgressSnapshot | None) -> str:
        if reading is None:
            return f"{self._doing or 'starting'} · {span(time.monotonic() - self._since)}"
        return " · ".join(part for part in (_done(reading), reading.details, reading.eta, reading.paused) if part)


def _done(reading: ProgressSnapshot) -> str:
    return f"{reading.settled:,}/{reading.total:,} done · {reading.failed:,} failed"


def _bar(reading: ProgressSnapshot) -> RenderableType:
    """Return two lines that fit 80 columns, and a third while sending is paused."""
    top = Table.grid(Column(ratio=1), Column(no_wrap=True), expand=True, padding=(0, 1, 0, 0))
    words = " · ".join(part for part in (_done(reading), reading.eta) if part)
    top.add_row(ProgressBar(total=reading.total, completed=reading.settled), words)
    lines = [Text(reading.details), *([Text(reading.paused, style="yellow")] if reading.paused else [])]
    return Group(top, *lines)

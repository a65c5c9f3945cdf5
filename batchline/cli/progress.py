"""Show the progress of a command: a live display on a terminal, else a line now and then."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from batchline.cli.console import print_note, stderr_console
from batchline.client import ProgressMeter, ProgressSnapshot
from batchline.models.formatting import format_span, join_parts

REFRESH_INTERVAL_S = 0.25
SAMPLE_INTERVAL_S = 1.0
MIN_PLAIN_INTERVAL_S = 5.0
MAX_PLAIN_INTERVAL_S = 60.0


class Progress:
    """Displays the current activity or the counters of a batch until the block ends."""

    def __init__(self) -> None:
        self._activity = "starting"
        self._since = time.monotonic()
        self._find_meter: Callable[[], ProgressMeter | None] = lambda: None
        self._meter: ProgressMeter | None = None
        self._snapshot: ProgressSnapshot | None = None
        self._stopping = threading.Event()
        console = stderr_console()
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
        self._activity = what

    def follow(self, find_meter: Callable[[], ProgressMeter | None]) -> None:
        """Show the counters of a batch as soon as this process runs it, which is when it has a meter."""
        self._find_meter = find_meter

    def show(self, snapshot: ProgressSnapshot | None) -> None:
        """Show these counters of a batch that another process runs."""
        self._snapshot = snapshot

    def _read_counters(self) -> ProgressSnapshot | None:
        meter = self._find_meter()
        if meter is None:
            self._meter = None
            return self._snapshot
        if self._meter is None:
            self._meter = meter
            self.doing("checking the input")
        snapshot = self._meter.read()
        if snapshot is not None:
            self.doing("finishing")
        return snapshot

    def _run_live_display(self) -> None:
        spinner = Spinner("line")
        with Live(console=stderr_console(), auto_refresh=False, transient=True) as live:
            while not self._stopping.wait(REFRESH_INTERVAL_S):
                snapshot = self._read_counters()
                spinner.update(text=Text(self._activity_text()))
                live.update(spinner if snapshot is None else _bar(snapshot), refresh=True)

    def _print_plain_lines(self) -> None:
        """Print a line per long activity, then at growing intervals of up to a minute."""
        began = due = time.monotonic()
        due += MIN_PLAIN_INTERVAL_S
        while not self._stopping.wait(SAMPLE_INTERVAL_S):
            counters, now = self._read_counters(), time.monotonic()
            if now >= due:
                print_note(
                    self._activity_text()
                    if counters is None
                    else join_parts(_counts(counters), counters.details, counters.eta, counters.paused)
                )
                due = now + min(MAX_PLAIN_INTERVAL_S, max(MIN_PLAIN_INTERVAL_S, (now - began) / 10))

    def _activity_text(self) -> str:
        return f"{self._activity} · {format_span(time.monotonic() - self._since)}"


def _counts(snapshot: ProgressSnapshot) -> str:
    return f"{snapshot.settled:,}/{snapshot.total:,} done · {snapshot.failed:,} failed"


def _bar(snapshot: ProgressSnapshot) -> RenderableType:
    """Return two lines that fit 80 columns, and a third while sending is paused."""
    top = Table.grid(Column(ratio=1), Column(no_wrap=True), expand=True, padding=(0, 1, 0, 0))
    bar = ProgressBar(total=snapshot.total, completed=snapshot.settled)
    top.add_row(bar, join_parts(_counts(snapshot), snapshot.eta))
    lines = [Text(snapshot.details), *([Text(snapshot.paused, style="yellow")] if snapshot.paused else [])]
    return Group(top, *lines)

"""Where the commands write: results on standard output, all else on standard error."""

import logging
import sys
from functools import cache

from rich.console import Console
from rich.markup import escape

UNBOUNDED = 2_000
"""Columns of a table that is not for a terminal."""


@cache
def messages() -> Console:
    """Standard error: progress, messages and logs. One object, so that a live display knows of each line."""
    return _console(stderr=True)


@cache
def results() -> Console:
    """Standard output: what a command was run for."""
    return _console(stderr=False)


class _Console(Console):
    """A console whose reader may go, as that of any other stream."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command's end, which knows the exit status."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # A file or a program gets each line whole; a terminal gets them broken between words.
    is_whole = not stream.isatty()
    width = UNBOUNDED if is_whole else None
    return _Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=is_whole, width=width)


def make_streams_lenient() -> None:
    """Let characters that the terminal's encoding lacks come out escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def print_json(text: str) -> None:
    """Write JSON to standard output as UTF-8, whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    messages().print(f"[red]error:[/] {escape(message)}")


class LogLines(logging.Handler):
    """Writes log records beside the other messages, so that they do not break a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, without a traceback: what ends a command is told by the command."""
        try:
            messages().print(f"{record.levelname.lower()}: {record.getMessage()}", markup=False)
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)

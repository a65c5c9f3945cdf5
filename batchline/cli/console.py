"""Where the commands write: results on standard output, all else on standard error."""

import logging
import sys
from functools import cache

from rich.console import Console
from rich.markup import escape

UNBOUNDED = 2_000
"""Columns of a table that is not for a terminal."""


@cache
def stderr_console() -> Console:
    """Standard error: progress, messages and logs. One object, so that a live display knows of each line."""
    return _open_console(stderr=True)


@cache
def stdout_console() -> Console:
    """Standard output: what a command was run for."""
    return _open_console(stderr=False)


class _Console(Console):
    """A console whose reader may go, as that of any other stream."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command's end, which knows the exit status."""
        raise BrokenPipeError


def _open_console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # A file or a program gets each line whole; a terminal gets them broken between words.
    is_whole = not stream.isatty()
    width = UNBOUNDED if is_whole else None
    return _Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=is_whole, width=width)


def escape_unencodable() -> None:
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


def print_error(message: str) -> None:
    """Say on standard error what went wrong."""
    stderr_console().print(f"[red]error:[/] {escape(message)}")


class ConsoleLogHandler(logging.Handler):
    """Writes log records beside the other messages, so that they do not break a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, without a traceback: what ends a command is told by the command."""
        try:
            stderr_console().print(f"{record.levelname.lower()}: {record.getMessage()}", markup=False)
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)

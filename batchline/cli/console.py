"""Consoles of the commands: results on standard output, everything else on standard error."""

import logging
import sys
from functools import cache

import msgspec
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

UNBOUNDED = 2_000
"""Width in columns of a table that is not for a terminal."""


@cache
def stderr_console() -> Console:
    """Return the console for progress, messages and logs: only one, so that it can keep a live display intact."""
    return _open_console(stderr=True)


@cache
def stdout_console() -> Console:
    """Return the console for a command's result."""
    return _open_console(stderr=False)


class _Console(Console):
    """A console that reports a closed pipe like any other stream."""

    def on_broken_pipe(self) -> None:
        """Raise the error to `main`, which knows the exit status; rich would exit with 1."""
        raise BrokenPipeError


def _open_console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Lines are wrapped only for a terminal; files and programs get them whole.
    is_whole = not stream.isatty()
    width = UNBOUNDED if is_whole else None
    return _Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=is_whole, width=width)


def escape_unencodable() -> None:
    """Escape characters that the terminal's encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def print_json(value: object) -> None:
    """Write a value as JSON to standard output, in UTF-8 for any terminal; text is JSON already."""
    if isinstance(value, BaseModel):
        value = value.model_dump_json()
    sys.stdout.flush()
    sys.stdout.buffer.write((value.encode() if isinstance(value, str) else msgspec.json.encode(value)) + b"\n")
    sys.stdout.buffer.flush()


def print_object(value: object, *, json: bool, result: str | None = None, note: str) -> None:
    """Print an object as JSON, or its result on standard output and a note for people on standard error."""
    if json:
        print_json(value)
        return
    if result is not None:
        stdout_console().print(result, markup=False)
    print_note(note, is_whole=True)


def print_note(text: str, *, is_whole: bool = False) -> None:
    """Print a line for people on standard error; a whole line is not wrapped, so that it can be copied."""
    stderr_console().print(text, markup=False, soft_wrap=is_whole or None)


def print_error(message: str) -> None:
    """Print an error message on standard error."""
    stderr_console().print(f"[red]error:[/] {escape(message)}")


class ConsoleLogHandler(logging.Handler):
    """Writes log records to the console of the messages, so that they do not break a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record without a traceback: the command itself reports an error that ends it."""
        try:
            stderr_console().print(f"{record.levelname.lower()}: {record.getMessage()}", markup=False)
        except Exception:  # noqa: BLE001 - like the standard library's handlers
            self.handleError(record)

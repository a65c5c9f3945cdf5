"""Runs the installed command as a program does, and as a person at a terminal does."""

import atexit
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from helpers.polling import until
from helpers.processes import kill_group

COMMAND = str(Path(sys.executable).with_name("batchline"))
TIMEOUT_S = 60.0
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")

# A new session's terminal becomes its controlling one, as a login's does: Ctrl-C then reaches the whole job.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class CommandResult(NamedTuple):
    """The result of a command: its exit status and its output."""

    status: int
    out: str
    err: str


COLOURS = ("FORCE_COLOR", "NO_COLOR", "TTY_")
PREFECT_HOME = tempfile.mkdtemp(prefix="prefect-")
"""The Prefect home of all tests."""
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)


def command_env(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's own environment, without what the person who runs it has set for Prefect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", *COLOURS))}
    return kept | {"PREFECT_HOME": PREFECT_HOME, "COLUMNS": "80"} | dict(changes or {})


def run_batchline(*arguments: str | Path, cwd: Path | None = None, **changes: str) -> CommandResult:
    """Run the command to its end."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        env=command_env(changes),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    return CommandResult(done.returncode, done.stdout.decode(), done.stderr.decode())


class RunningCommand:
    """A command that runs, its output in files."""

    def __init__(self, *arguments: str | Path, folder: Path, **changes: str) -> None:
        self._out, self._err = folder / f"out-{time.time_ns()}", folder / f"err-{time.time_ns()}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [COMMAND, *map(str, arguments)],
                env=command_env(changes),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        """The standard error so far."""
        return self._err.read_text()

    def wait_for(self, words: str) -> None:
        """Return once standard error has these words."""
        until(lambda: words in self.err or self.process.poll() is not None)
        assert words in self.err, self.err

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> CommandResult:
        status = self.process.wait(timeout_s)
        return CommandResult(status, self._out.read_text(), self.err)

    @property
    def batch_id(self) -> str:
        """The id of its batch, as soon as it has one."""
        self.wait_for("batch: batch-")
        return batch_id_in(self.err)


def batch_id_in(text: str) -> str:
    found = re.search(r"batch-[0-9a-f]{32}", text)
    assert found, text
    return found[0]


@contextmanager
def running_command(
    *arguments: str | Path, folder: Path | None = None, **changes: str
) -> Iterator[RunningCommand]:
    """A command that runs until the block ends, at the latest."""
    command = RunningCommand(*arguments, folder=folder or Path.cwd(), **changes)
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            command.process.kill()
        command.process.wait()


class Terminal:
    """A command on a terminal of its own, of so many columns."""

    def __init__(self, *arguments: str | Path, columns: int = 80, **changes: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = command_env({"TERM": "xterm-256color", **changes})
        del environment["COLUMNS"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, COMMAND, *map(str, arguments)],
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        kill_group(self._process)
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # Linux's way to say that nobody has the other side any more
            while piece := os.read(self._master, 65_536):
                self._seen += piece

    @property
    def raw(self) -> str:
        return self._seen.decode(errors="replace")

    @property
    def text(self) -> str:
        """All text drawn so far, without colours and cursor movements."""
        return ESCAPES.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        return re.split(r"[\r\n]+", self.text)

    def wait_for(self, words: str) -> None:
        until(lambda: words in self.text or self._process.poll() is not None)
        assert words in self.text, self.text

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit status, once all that it wrote is here."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

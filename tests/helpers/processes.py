"""Processes that tests start: identified beyond their ids, and stopped with all that they started.

A process id is used again once its process was reaped, and ids are few (threads use them up as well): a signal to
an id that was kept for long may kill another test's server.
"""

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from helpers.polling import until


@dataclass(frozen=True)
class Process:
    """A process that any other may stop; `started` tells it from a later one with the same id."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Identify a process that runs now."""
        return cls(pid, _start_time(pid))

    def kill_group(self) -> None:
        """Kill it and its process group, if it is still there."""
        if _start_time(self.pid) == self.started:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """Describe how it ended, as far as the kernel still knows."""
        stat = _stat(self.pid)
        if _start_time(self.pid) != self.started or not stat:
            return "its parent has reaped it"
        if stat[0] != "Z":
            return f"it is still there, in state {stat[0]}"
        status = int(stat[-1])  # as waitpid gives it
        return f"killed by signal {status & 0x7F}" if status & 0x7F else f"exit status {status >> 8}"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and its process group, then reap it. A child that was reaped is left alone: its id is free."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_unreaped(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait until a child has ended and leave it unreaped, so that nobody else gets its id."""

    def has_ended() -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return process.returncode is not None or os.waitid(os.P_PID, process.pid, options) is not None

    until(has_ended, timeout_s)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str:
    """The time at which a process started, in clock ticks since boot; empty if there is no such process."""
    stat = _stat(pid)
    return stat[19] if stat else ""

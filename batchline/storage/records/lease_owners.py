"""Names of lease owners, from which a process on this machine can be recognized as ended.

A name is `host:pid:machine-start-random`. `machine` is a digest that identifies this machine and container;
`start` is when the process began, so that a reused process id is not taken for the owner.
"""

import hashlib
import os
import platform
import socket
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

UNKNOWN_START = "?"
"""Start of a process of which only its existence is known."""


def new_lease_owner() -> str:
    """Return a new name for this process as the owner of a lease."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_machine_digest()}-{_process_start(pid)}-{uuid.uuid4().hex[:8]}"


def has_owner_ended(owner: str) -> bool:
    """Return True if the owner was a process of this machine that has ended; False if that is not known."""
    host, pid_text, details = [*owner.split(":"), "", ""][:3]
    machine, start, *rest = [*details.split("-"), "", ""]
    if not rest[0] or not pid_text.isdigit() or (host, machine) != (socket.gethostname(), _machine_digest()):
        return False
    current_start = _process_start(int(pid_text))
    return current_start is None or (UNKNOWN_START not in {current_start, start} and current_start != start)


@cache
def _machine_digest() -> str:
    """Return a digest of the boot id and PID namespace: each container numbers its own processes."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
        identity = f"{boot_id}{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path
    except OSError:
        identity = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _process_start(pid: int) -> str | None:
    """Return the start time in clock ticks since boot, `UNKNOWN_START`, or None if there is no such process."""
    try:
        # The name in parentheses may contain spaces and parentheses, so parse after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a system without /proc, or one that hides other users' processes there
        with suppress(PermissionError):  # it exists, and is another user's
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
        return UNKNOWN_START
    is_dead = fields[0] in {"Z", "X"}  # a zombie, whose parent has not yet waited for it
    return None if is_dead else fields[19]

"""Names of the processes that hold leases, and whether such a process of this machine has ended.

A name is `host:process:machine-start-random`. Machine is a digest of what tells this machine, and this container,
from others; start is when the process began, so that a process id that is used again is not taken for its owner.
"""

import hashlib
import os
import platform
import socket
import uuid
from functools import cache
from pathlib import Path

UNKNOWN_START = "?"
"""The start of a process about which no more is known than that it lives."""


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
    """Return a digest of this machine's boot and the process namespace, since each container has its own."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
        identity = f"{boot_id}{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path
    except OSError:
        identity = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _process_start(pid: int) -> str | None:
    """Return when the process began, in the kernel's ticks; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return UNKNOWN_START if _process_exists(pid) else None
    is_dead = fields[0] in {"Z", "X"}  # a zombie, whose parent has not asked for its status yet
    return None if is_dead else fields[19]


def _process_exists(pid: int) -> bool:
    """Return True if there is such a process, which /proc may hide from us, or not be there to show."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

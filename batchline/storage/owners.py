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

UNKNOWN = "?"
"""The start of a process about which no more is known than that it lives."""


def owner_name() -> str:
    """Return a new name for this process as the owner of a lease."""
    process = os.getpid()
    return f"{socket.gethostname()}:{process}:{_machine()}-{_start_of(process)}-{uuid.uuid4().hex[:8]}"


def has_ended(owner: str) -> bool:
    """Return True if the owner was a process of this machine that has ended; False if that is not known."""
    host, number, details = [*owner.split(":"), "", ""][:3]
    machine, start, *rest = [*details.split("-"), "", ""]
    if not rest[0] or not number.isdigit() or (host, machine) != (socket.gethostname(), _machine()):
        return False
    now = _start_of(int(number))
    return now is None or (UNKNOWN not in {now, start} and now != start)


@cache
def _machine() -> str:
    """Return a digest of this machine's boot and the process namespace, since each container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        identity = f"{boot}{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path
    except OSError:
        identity = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _start_of(process: int) -> str | None:
    """Return when the process began, in the kernel's ticks; None if there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return UNKNOWN if _exists(process) else None
    is_dead = fields[0] in {"Z", "X"}  # a zombie, whose parent has not asked for its status yet
    return None if is_dead else fields[19]


def _exists(process: int) -> bool:
    """Return True if there is such a process, which /proc may hide from us, or not be there to show."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

"""TCP keepalive settings, which find connections whose other end has vanished.

A model can take minutes to reply, and nothing is sent meanwhile. NATs and load balancers silently drop an idle
connection after 240 to 350 s, and the system's own keepalive starts after two hours.
"""

import socket
from typing import Final

KEEPALIVE_IDLE_S: Final = 45
"""Seconds of silence before the first keepalive probe."""

KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 3
TCP_USER_TIMEOUT_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S
"""Seconds without acknowledgement of sent data after which the connection breaks."""


_TCP_OPTIONS: Final = {
    # macOS has another name for the idle time.
    "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE": KEEPALIVE_IDLE_S,
    "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
    "TCP_KEEPCNT": KEEPALIVE_PROBES,
    "TCP_USER_TIMEOUT": TCP_USER_TIMEOUT_S * 1_000,
}
KEEPALIVE_OPTIONS: Final[list[tuple[int, int, int]]] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _TCP_OPTIONS.items()
        if hasattr(socket, name)
    ),
]
"""Socket options, as far as the system supports them."""

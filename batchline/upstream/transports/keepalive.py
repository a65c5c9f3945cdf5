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


def _socket_options() -> list[tuple[int, int, int]]:
    """Return the socket options that this system supports; macOS has another name for the idle time."""
    idle_option = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    candidates = [
        (idle_option, KEEPALIVE_IDLE_S),
        (getattr(socket, "TCP_KEEPINTVL", None), KEEPALIVE_INTERVAL_S),
        (getattr(socket, "TCP_KEEPCNT", None), KEEPALIVE_PROBES),
        (getattr(socket, "TCP_USER_TIMEOUT", None), TCP_USER_TIMEOUT_S * 1_000),
    ]
    supported = [(socket.IPPROTO_TCP, option, value) for option, value in candidates if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *supported]


KEEPALIVE_OPTIONS: Final = _socket_options()

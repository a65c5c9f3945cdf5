"""Times after which a connection whose other end has vanished is given up.

A model can take minutes for an answer, and nothing is sent meanwhile. NATs and load balancers forget a silent
connection after 240 to 350 s without telling either end; the system's own keepalive begins after two hours.
"""

import socket
from typing import Final

IDLE_S: Final = 45
"""Seconds of silence before the first keepalive probe."""

INTERVAL_S: Final = 15
PROBES: Final = 3
UNACKNOWLEDGED_S: Final = IDLE_S + PROBES * INTERVAL_S
"""Seconds after which sent data that the other end does not acknowledge breaks the connection."""


def _options() -> list[tuple[int, int, int]]:
    """Return the socket options, as far as this system has them; macOS names the idle time differently."""
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    wanted = [
        (idle, IDLE_S),
        (getattr(socket, "TCP_KEEPINTVL", None), INTERVAL_S),
        (getattr(socket, "TCP_KEEPCNT", None), PROBES),
        (getattr(socket, "TCP_USER_TIMEOUT", None), UNACKNOWLEDGED_S * 1_000),
    ]
    known = [(socket.IPPROTO_TCP, option, value) for option, value in wanted if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


KEEPALIVE_OPTIONS: Final = _options()

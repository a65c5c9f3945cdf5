"""Addresses of hosts, and of bytes in a file."""

import re
from ipaddress import ip_address
from typing import Final

_BYTE_RANGE: Final = re.compile(r"([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach that host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def byte_range(text: str, size_bytes: int) -> tuple[int, int | None] | None:
    """Return start and end (exclusive) of `0-99`, `100-` or, the last bytes of so many, `-100`.

    The end is None if it is that of the file. None instead of a pair if the text is no range.
    """
    match = _BYTE_RANGE.fullmatch(text)
    if match is None or text == "-" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return None
    if match[1]:
        return int(match[1]), int(match[2]) + 1 if match[2] else None
    return max(0, size_bytes - int(match[2])), None

"""Checks host addresses and parses byte ranges."""

import re
from ipaddress import ip_address
from typing import Final

_BYTE_RANGE: Final = re.compile(r"([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def byte_range(text: str, size_bytes: int) -> tuple[int, int | None] | None:
    """Parse a range such as `0-99`, `100-` or `-100` (the last 100 bytes) to start and exclusive end.

    The end is None if it is the end of the file. Returns None if the text is not a range.
    """
    match = _BYTE_RANGE.fullmatch(text)
    if match is None or text == "-" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return None
    if match[1]:
        return int(match[1]), int(match[2]) + 1 if match[2] else None
    return max(0, size_bytes - int(match[2])), None

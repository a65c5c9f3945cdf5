"""Compress content sent to other machines."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from starlette.requests import Request

from batchline.models.addresses import is_loopback

GZIP_LEVEL: Final = 1
"""Result lines shrink to about a fifth; higher levels cost several times the CPU for a tenth less."""


def wants_gzip(request: Request) -> bool:
    """Return True if the client accepts gzip, requests no range, and is on another machine.

    Most clients accept gzip by default: within one machine it only costs CPU.
    """
    peer = request.client
    if "range" in request.headers or peer is None or is_loopback(peer.host):
        return False
    accepted = request.headers.get("accept-encoding", "").lower().replace(" ", "").split(",")
    weights = {name: weight for name, _, weight in (encoding.partition(";q=") for encoding in accepted)}
    # A weight of 0 refuses an encoding.
    return any(not weights[name] or weights[name].strip("0.") for name in ("gzip", "x-gzip") if name in weights)


def gzip_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks as one gzip stream."""
    compressor = zlib.compressobj(GZIP_LEVEL, wbits=zlib.MAX_WBITS | 16)  # 16: with a gzip header
    for block in blocks:
        if compressed := compressor.compress(block):
            yield compressed
    yield compressor.flush()

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
    return any(_is_gzip(encoding) for encoding in request.headers.get("accept-encoding", "").lower().split(","))


def _is_gzip(encoding: str) -> bool:
    """Return True for gzip in an Accept-Encoding header, unless its weight is 0."""
    name, _, weight = encoding.replace(" ", "").partition(";q=")
    return name in {"gzip", "x-gzip"} and not (weight and not weight.strip("0."))


def gzip_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks as one gzip stream."""
    compressor = zlib.compressobj(GZIP_LEVEL, wbits=zlib.MAX_WBITS | 16)  # 16: with a gzip header
    for block in blocks:
        if compressed := compressor.compress(block):
            yield compressed
    yield compressor.flush()

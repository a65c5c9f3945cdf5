"""Decodes the content encodings of replies: gzip with all its members, and deflate with or without zlib's header.

Shared by all transports, since libraries differ: most decode only the first member of a gzip body, and take one
that was cut short for complete.
"""

import zlib
from typing import Final

from batchline.models.error_codes import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream.transports.base import TransportFailure, response_too_long

SUPPORTED_ENCODINGS: Final = ("gzip", "deflate")

_NO_ENCODINGS: Final = frozenset({"", "identity", "none", "utf-8", "utf8"})
"""Names that servers use for content as it is; the last two are character sets and do not belong here."""

_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15
_RAW_WBITS: Final = -15
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PIECE_BYTES: Final = 2**12
"""Size of the pieces that are decompressed: the rest of a piece is copied after each member, which may be tiny."""


def decode_body(body: bytes, encodings: str, status_code: int, upstream: Upstream) -> bytes:
    """Return the decoded body; `encodings` is the value of Content-Encoding.

    Raises `TransportFailure`: data that ends too early is a broken connection, an unsupported encoding or wrong
    data an invalid response. The body of a reply that is not a 2xx is then returned as it came, because its status
    says what to do.
    """
    try:
        for encoding in reversed(encodings.lower().split(",")):
            # A reply without content, such as a 204, may name an encoding.
            if body and (encoding := encoding.strip()) not in _NO_ENCODINGS:
                body = _decode(body, encoding, upstream)
    except TransportFailure:
        if 200 <= status_code < 300:
            raise
    return body


def _decode(body: bytes, encoding: str, upstream: Upstream) -> bytes:
    try:
        if encoding in {"gzip", "x-gzip"}:
            return _decompress(body, _GZIP_WBITS, upstream)
        if encoding == "deflate":
            try:
                return _decompress(body, _ZLIB_WBITS, upstream)
            except zlib.error:  # many servers leave out zlib's header, against RFC 9110, 8.4.1.2
                return _decompress(body, _RAW_WBITS, upstream)
    except zlib.error as error:
        raise _invalid_response(
            f"the answer cannot be decoded as {encoding}, its Content-Encoding: {error}"
        ) from error
    raise _invalid_response(
        f"the answer's Content-Encoding {encoding[:40]!r} is not supported; switch it off at the server"
    )


def _decompress(body: bytes, wbits: int, upstream: Upstream) -> bytes:
    """Return the decompressed body; raises `zlib.error` if the data is wrong."""
    max_bytes = upstream.max_response_bytes
    decompressor = zlib.decompressobj(wbits)
    blocks: list[bytes] = []
    size = 0
    for offset in range(0, len(body), _PIECE_BYTES):
        piece = body[offset : offset + _PIECE_BYTES]
        while piece:
            if decompressor.eof:
                if wbits != _GZIP_WBITS or not _GZIP_MAGIC.startswith(piece[:2]):
                    return b"".join(blocks)  # browsers ignore what follows the last member
                decompressor = zlib.decompressobj(wbits)
            # Bounded, against a short body that decompresses to gigabytes.
            block = decompressor.decompress(piece, max_bytes + 1 - size)
            size += len(block)
            if size > max_bytes:
                raise response_too_long(upstream)
            blocks.append(block)
            piece = decompressor.unused_data
    if not decompressor.eof:
        raise TransportFailure(
            ErrorCode.CONNECTION_ERROR,
            "the connection broke: the compressed answer ends too early",
            sent=True,
            response_started=True,
        )
    return b"".join(blocks)


def _invalid_response(message: str) -> TransportFailure:
    return TransportFailure(ErrorCode.INVALID_RESPONSE, message, sent=True, response_started=True)

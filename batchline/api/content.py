"""File content over HTTP: whole, a range of bytes, or a range of lines; compressed for other machines."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.concurrency import iterate_in_thread
from batchline.api.errors import ApiError
from batchline.client import Batchline
from batchline.client.line_ranges import FileExtent
from batchline.models.addresses import byte_range, is_loopback
from batchline.models.files import FileObject

MEDIA_TYPE: Final = "application/octet-stream"
GZIP_LEVEL: Final = 1
"""Result lines shrink to about a fifth; higher levels cost several times the CPU for a tenth less."""

_UNSAFE_IN_FILENAME: Final = re.compile(r"[^ !#-$&-\[\]-~]")
"""Characters not allowed in a quoted filename: quotes, backslashes, percent signs and non-ASCII."""


class ContentQuery(BaseModel):
    """Lines of a file to read; without any of these fields, the whole file or byte ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: int | None = Field(default=None, ge=0, lt=2**53, description="Number of lines to skip.")
    offset: int | None = Field(default=None, ge=0, lt=2**53, description="The same as `skip`.")
    limit: int | None = Field(default=None, ge=1, lt=2**53, description="Maximum number of lines.")
    search: str | None = Field(default=None, description="Text that the custom_id contains, ignoring case.")


def content_response(request: Request, file_id: str, query: ContentQuery, client: Batchline) -> Response:
    """Return the requested content; raises `NotFound`, and `ApiError` for a range outside the file."""
    file = client.files.retrieve(file_id)
    if query.model_fields_set:
        skip = (query.skip if query.offset is None else query.offset) or 0
        page = client.files.lines(file_id, skip=skip, limit=query.limit, search=query.search)
        headers = _line_headers(is_complete=page.is_complete, last_line=page.last_line)
        return _stream_response(page.blocks, {**_disposition_headers(file), **headers}, gzip=wants_gzip(request))
    extent = client.files.extent(file_id)
    headers = {
        **_disposition_headers(file),
        **_line_headers(is_complete=extent.is_complete, last_line=extent.lines),
        "Accept-Ranges": "bytes",
    }
    gzip = wants_gzip(request) and extent.size_bytes > 0
    # Each encoding has its own ETag, so that caches do not mix them.
    etag = None
    if extent.key is not None:  # the content at a key never changes: a retry writes to new keys
        etag = f'"{hashlib.sha256(extent.key.encode()).hexdigest()[:32]}{"-gzip" if gzip else ""}"'
        headers["ETag"] = etag
        known_etags = request.headers.get("if-none-match", "").split(",")
        if any(value.strip().removeprefix("W/") in {etag, "*"} for value in known_etags):
            return Response(status_code=304, headers=headers)
    condition = request.headers.get("if-range")
    byte_range = _parse_range(request.headers.get("range"), extent) if condition in {None, etag} else None
    start, end = byte_range or (0, extent.size_bytes)
    if not gzip:
        headers["Content-Length"] = str(end - start)
    if byte_range is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{extent.size_bytes if extent.is_complete else '*'}"
    blocks = client.files.content(file_id, start=start, end=end, key=extent.key)
    return _stream_response(blocks, headers, status=200 if byte_range is None else 206, gzip=gzip)


def _stream_response(
    blocks: Iterator[bytes], headers: dict[str, str], *, gzip: bool, status: int = 200
) -> Response:
    headers = {**headers, "Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if gzip else {})}
    return StreamingResponse(
        iterate_in_thread(gzip_blocks(blocks) if gzip else blocks), status, headers, media_type=MEDIA_TYPE
    )


def _disposition_headers(file: FileObject) -> dict[str, str]:
    """Return the filename in ASCII, for clients that read only that, and as UTF-8."""
    ascii_name = _UNSAFE_IN_FILENAME.sub("_", file.filename)
    encoded_name = quote(file.filename, safe="")
    return {"Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded_name}"}


def _line_headers(*, is_complete: bool, last_line: int | None) -> dict[str, str]:
    """Return the headers for incremental reading that Doubleword's clients expect."""
    lines = {} if last_line is None else {"X-Last-Line": str(last_line)}
    return {"X-Incomplete": "false" if is_complete else "true", **lines}


def _parse_range(header: str | None, extent: FileExtent) -> tuple[int, int] | None:
    """Return start and end (exclusive) of a single byte range, or None for any other header; raises `ApiError`."""
    size, unit = extent.size_bytes, "bytes="
    found = byte_range(header.removeprefix(unit), size) if header and header.startswith(unit) else None
    if found is None:
        return None
    start, end = found[0], size if found[1] is None else min(size, found[1])
    if start >= end:
        raise ApiError(
            416,
            f"the file has {size} bytes; {header} is outside of it",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


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

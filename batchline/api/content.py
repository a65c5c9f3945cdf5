"""Content of files over HTTP: whole, a range of bytes, or a stretch of lines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from batchline.api.errors import Refusal
from batchline.api.packing import packed, wants_gzip
from batchline.api.places import in_turn
from batchline.models.addresses import byte_range
from batchline.models.files import FileObject
from batchline.operations import Batchline
from batchline.operations.lines import Extent

MEDIA_TYPE: Final = "application/octet-stream"
_NOT_PLAIN: Final = re.compile(r"[^ !#-$&-\[\]-~]")
"""Characters that a quoted filename may not have: quotes, backslashes, percent signs and non-ASCII."""


class ContentQuery(BaseModel):
    """Which lines of a file to read; without any of these the file is given whole, or by byte ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: int | None = Field(default=None, ge=0, lt=2**53, description="Leave out so many lines first.")
    offset: int | None = Field(default=None, ge=0, lt=2**53, description="Another name of `skip`.")
    limit: int | None = Field(default=None, ge=1, lt=2**53, description="At most so many lines.")
    search: str | None = Field(default=None, description="Part of a custom_id; case does not matter.")

    @property
    def is_by_line(self) -> bool:
        """Whether lines are asked for."""
        return bool(self.model_fields_set)


def content_of(request: Request, file_id: str, query: ContentQuery, client: Batchline) -> Response:
    """The answer with the content that is asked for; raises `NotFound`, and `Refusal` for a range outside."""
    file = client.files.retrieve(file_id)
    if query.is_by_line:
        skip = (query.skip if query.offset is None else query.offset) or 0
        found = client.files.lines(file_id, skip=skip, limit=query.limit, search=query.search)
        headers = _progress(is_whole=found.is_whole, last=found.last)
        return _streamed(found.blocks, {**_named(file), **headers}, gzip=wants_gzip(request))
    extent = client.files.extent(file_id)
    headers = {**_named(file), **_progress(is_whole=extent.is_whole, last=extent.lines), "Accept-Ranges": "bytes"}
    gzip = wants_gzip(request) and extent.size_bytes > 0
    tag = None if extent.key is None else _tag(extent.key, gzip=gzip)
    if tag is not None:
        headers["ETag"] = tag
        if _names(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
    condition = request.headers.get("if-range")
    span = _range(request.headers.get("range"), extent) if condition in {None, tag} else None
    start, end = span or (0, extent.size_bytes)
    if not gzip:
        headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{extent.size_bytes if extent.is_whole else '*'}"
    blocks = client.files.content(file_id, start=start, end=end, key=extent.key)
    return _streamed(blocks, headers, status=200 if span is None else 206, gzip=gzip)


def _tag(key: str, *, gzip: bool) -> str:
    """The ETag of the content at that key, where no other content ever is: a retry writes to keys of its own."""
    return f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}{"-gzip" if gzip else ""}"'


def _names(asked: str, tag: str) -> bool:
    """True if an If-None-Match header names that ETag."""
    return any(each.strip().removeprefix("W/") in {tag, "*"} for each in asked.split(","))


def _streamed(blocks: Iterator[bytes], headers: dict[str, str], *, gzip: bool, status: int = 200) -> Response:
    headers = {**headers, "Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if gzip else {})}
    return StreamingResponse(in_turn(packed(blocks) if gzip else blocks), status, headers, media_type=MEDIA_TYPE)


def _named(file: FileObject) -> dict[str, str]:
    """The name twice: in ASCII for clients that read no other, and as it is."""
    plain = _NOT_PLAIN.sub("_", file.filename)
    encoded = quote(file.filename, safe="")
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"}


def _progress(*, is_whole: bool, last: int | None) -> dict[str, str]:
    """Whether more may come, and which line to go on behind, as Doubleword's clients expect it."""
    lines = {} if last is None else {"X-Last-Line": str(last)}
    return {"X-Incomplete": "false" if is_whole else "true", **lines}


def _range(asked: str | None, extent: Extent) -> tuple[int, int] | None:
    """Start and end (exclusive) of the one range that is asked for; none where another kind of thing is."""
    size, unit = extent.size_bytes, "bytes="
    found = byte_range(asked.removeprefix(unit), size) if asked and asked.startswith(unit) else None
    if found is None:
        return None
    start, end = found[0], size if found[1] is None else min(size, found[1])
    if start >= end:
        raise Refusal(
            416,
            f"the file has {size} bytes; there is nothing at {asked}",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end

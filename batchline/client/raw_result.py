"""A result as stored, with its bodies as unparsed JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from batchline.models.batches import BatchResultItem
from batchline.models.lines import encode_json, escape_line_separators, to_single_line


class RawResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of a request; `input_text` and `response_text` are the JSON texts of its bodies."""

    id: str
    custom_id: str
    model: str | None = None
    input_text: bytes | None = None
    response_text: bytes | None = None
    error: str | None = None
    status: str
    finish_reason: str | None = None
    mark: str | None = None

    def to_json(self) -> bytes:
        """Return the `BatchResultItem` as JSON on a single line, with the bodies unchanged."""
        return self.to_line()[:-1]

    def to_line(self) -> bytes:
        """Return the JSON with a newline, built with few copies because bodies may be long."""
        parts = [b'{"id":', encode_json(self.id), b',"custom_id":', encode_json(self.custom_id)]
        fields = (
            (b"model", None if self.model is None else encode_json(self.model)),
            (b"input_body", self.input_text),
            (b"response_body", self.response_text),
            (b"error", None if self.error is None else encode_json(self.error)),
            (b"status", encode_json(self.status)),
            (b"finish_reason", None if self.finish_reason is None else encode_json(self.finish_reason)),
            (b"mark", None if self.mark is None else encode_json(self.mark)),
        )
        for name, text in fields:
            if text is not None and text != b"null":
                parts += [b',"', name, b'":', text]
        line = b"".join((*map(to_single_line, parts), b"}\n"))
        return line if line.isascii() else escape_line_separators(line)

    def to_item(self) -> BatchResultItem:
        """Return the result with parsed bodies; a body that Python cannot parse stays text."""
        return BatchResultItem(
            id=self.id,
            custom_id=self.custom_id,
            model=self.model,
            input_body=_decode_json(self.input_text),
            response_body=_decode_json(self.response_text),
            error=self.error,
            status=self.status,
            finish_reason=self.finish_reason,
            mark=self.mark,
        )


def _decode_json(text: bytes | None) -> Any:
    """Return the decoded JSON. Python refuses numbers of over 4,300 digits and nesting of about 1,000 levels."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode(errors="replace")


def split_blocks(results: Iterable[RawResult], *, max_items: int, max_bytes: int) -> Iterator[list[RawResult]]:
    """Yield blocks of up to `max_items` results, or about `max_bytes` of bodies."""
    block: list[RawResult] = []
    size_bytes = 0
    for result in results:
        block.append(result)
        size_bytes += len(result.input_text or b"") + len(result.response_text or b"")
        if len(block) == max_items or size_bytes >= max_bytes:
            yield block
            block, size_bytes = [], 0
    if block:
        yield block

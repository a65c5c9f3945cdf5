"""Locate ranges of lines in a file, and filter their lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec


class FileExtent(msgspec.Struct, frozen=True):
    """The extent of a file, final if `is_complete`. `lines` is None if they were not counted.

    `key` addresses the content of a complete file; after a retry the file has other content and another key.
    """

    size_bytes: int
    is_complete: bool
    lines: int | None = None
    key: str | None = None


class LinePage(msgspec.Struct, frozen=True):
    """Lines of a file, in blocks; the next page starts after `last_line`, the last line searched."""

    blocks: Iterator[bytes]
    last_line: int
    is_complete: bool


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` (exclusive) of a file, and the number of the line that ends there."""

    start: int
    end: int
    last_line: int


MAX_SEARCHED_BYTES: Final = 64 * 2**20
"""A line above this size matches nothing, since a stored file may be a single line of gigabytes."""


class _CustomIdLine(msgspec.Struct):
    custom_id: str


_decode = msgspec.json.Decoder(_CustomIdLine).decode


def find_lines(blocks: Iterable[bytes], *, skip: int, limit: int | None, search: str | None) -> ByteRange:
    """Return the range after the first `skip` lines that ends with the `limit`-th matching line."""
    if search and limit is not None:
        return _find_matches(blocks, skip, limit, search)
    start, offset, line_number, is_line_ended = 0 if skip == 0 else None, 0, 0, True
    stop_line = None if limit is None else skip + limit
    for block in blocks:
        newline_count = block.count(b"\n")
        if start is None and line_number + newline_count >= skip:
            start = offset + _offset_after(block, skip - line_number)
        if start is not None and stop_line is not None and line_number + newline_count >= stop_line:
            return ByteRange(start, offset + _offset_after(block, stop_line - line_number), stop_line)
        offset, line_number, is_line_ended = (
            offset + len(block),
            line_number + newline_count,
            block.endswith(b"\n"),
        )
    return ByteRange(offset if start is None else start, offset, line_number if is_line_ended else line_number + 1)


def _offset_after(block: bytes, line_count: int) -> int:
    """Return the offset after that many line ends of the block."""
    offset = 0
    for _ in range(line_count):
        offset = block.index(b"\n", offset) + 1
    return offset


def _find_matches(blocks: Iterable[bytes], skip: int, limit: int, search: str) -> ByteRange:
    start = offset = line_number = match_count = 0
    for line_number, (size, line) in enumerate(_split_lines(blocks), 1):
        offset += size
        if line_number <= skip:
            start = offset
            continue
        match_count += matches_search(line, search)
        if match_count == limit:
            break
    return ByteRange(start, offset, line_number)


def filter_lines(blocks: Iterable[bytes], search: str | None) -> Iterator[bytes]:
    """Yield the blocks, or with `search` the lines whose custom_id contains it, ignoring case."""
    if not search:
        yield from blocks
        return
    for _, line in _split_lines(blocks):
        if matches_search(line, search):
            yield line


def matches_search(line: bytes, search: str) -> bool:
    """Return True if the line's custom_id contains `search`, ignoring case."""
    try:
        return search.lower() in _decode(line).custom_id.lower()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _split_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each line's size and its bytes with the line end; the bytes are empty if the line is too long."""
    pending: list[bytes] = []
    size = 0

    def finish_line(tail: bytes) -> tuple[int, bytes]:
        nonlocal size
        sized_line = size + len(tail), b"" if size > MAX_SEARCHED_BYTES else b"".join((*pending, tail))
        pending.clear()
        size = 0
        return sized_line

    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield finish_line(line + b"\n")
        size += len(rest)
        if rest and size <= MAX_SEARCHED_BYTES:
            pending.append(rest)
        elif rest:
            pending.clear()
    if size:
        yield finish_line(b"")

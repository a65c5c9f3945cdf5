"""Stretches of a file by line: where they are, and which of their lines are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec


class FileExtent(msgspec.Struct, frozen=True):
    """The extent of a file; one that `is_whole` grows no more. `lines` is absent if they were not counted.

    `key` is where the content of a whole file is: other content of the file, after a retry, has another key.
    """

    size_bytes: int
    is_complete: bool
    lines: int | None = None
    key: str | None = None


class LinePage(msgspec.Struct, frozen=True):
    """Lines of a file, in blocks; `last` is the number of the last that was looked at, to go on behind."""

    blocks: Iterator[bytes]
    last_line: int
    is_complete: bool


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` (exclusive) of a file, and the number of the line that ends there."""

    start: int
    end: int
    last_line: int


MAX_SEARCHED_BYTES: Final = 64 * 2**20
"""A line of more bytes than that matches nothing: a file that was stored may be one line of gigabytes."""


class _CustomIdLine(msgspec.Struct):
    custom_id: str


_decode = msgspec.json.Decoder(_CustomIdLine).decode


def find_lines(blocks: Iterable[bytes], *, skip: int, limit: int | None, search: str | None) -> ByteRange:
    """Where the lines behind the first `skip` are, up to the one that makes `limit` of those that match."""
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
    """The place behind so many line ends of the block."""
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
    """The blocks, or of their lines those whose custom_id has that in it; case does not matter."""
    if not search:
        yield from blocks
        return
    for _, line in _split_lines(blocks):
        if matches_search(line, search):
            yield line


def matches_search(line: bytes, search: str) -> bool:
    """Whether the line has that in its custom_id."""
    try:
        return search.lower() in _decode(line).custom_id.lower()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _split_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines with their ends, across blocks, each with its size; of those that are too long nothing is kept."""
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

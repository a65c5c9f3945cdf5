"""Stretches of a file by line: where they are, and which of their lines are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec


class Extent(msgspec.Struct, frozen=True):
    """The extent of a file; one that `is_whole` grows no more. `lines` is absent if they were not counted.

    `key` is where the content of a whole file is: other content of the file, after a retry, has another key.
    """

    size_bytes: int
    is_whole: bool
    lines: int | None = None
    key: str | None = None


class LinesRead(msgspec.Struct, frozen=True):
    """Lines of a file, in blocks; `last` is the number of the last that was looked at, to go on behind."""

    blocks: Iterator[bytes]
    last: int
    is_whole: bool


class Place(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` (exclusive) of a file, and the number of the line that ends there."""

    start: int
    end: int
    last: int


LONGEST_SEARCHED: Final = 64 * 2**20
"""A line of more bytes than that matches nothing: a file that was stored may be one line of gigabytes."""


class _Line(msgspec.Struct):
    custom_id: str


_decode = msgspec.json.Decoder(_Line).decode


def find_lines(blocks: Iterable[bytes], *, skip: int, limit: int | None, search: str | None) -> Place:
    """Where the lines behind the first `skip` are, up to the one that makes `limit` of those that match."""
    if search and limit is not None:
        return _find_matches(blocks, skip, limit, search)
    start, at, line, ends = 0 if skip == 0 else None, 0, 0, True
    stop = None if limit is None else skip + limit
    for block in blocks:
        count = block.count(b"\n")
        if start is None and line + count >= skip:
            start = at + _behind(block, skip - line)
        if start is not None and stop is not None and line + count >= stop:
            return Place(start, at + _behind(block, stop - line), stop)
        at, line, ends = at + len(block), line + count, block.endswith(b"\n")
    return Place(at if start is None else start, at, line if ends else line + 1)


def _behind(block: bytes, lines: int) -> int:
    """The place behind so many line ends of the block."""
    at = 0
    for _ in range(lines):
        at = block.index(b"\n", at) + 1
    return at


def _find_matches(blocks: Iterable[bytes], skip: int, limit: int, search: str) -> Place:
    start = at = number = found = 0
    for number, (size, line) in enumerate(_lines(blocks), 1):
        at += size
        if number <= skip:
            start = at
            continue
        found += is_match(line, search)
        if found == limit:
            break
    return Place(start, at, number)


def matching(blocks: Iterable[bytes], search: str | None) -> Iterator[bytes]:
    """The blocks, or of their lines those whose custom_id has that in it; case does not matter."""
    if not search:
        yield from blocks
        return
    for _, line in _lines(blocks):
        if is_match(line, search):
            yield line


def is_match(line: bytes, search: str) -> bool:
    """Whether the line has that in its custom_id."""
    try:
        return search.lower() in _decode(line).custom_id.lower()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines with their ends, across blocks, each with its size; of those that are too long nothing is kept."""
    held: list[bytes] = []
    size = 0

    def ended(rest: bytes) -> tuple[int, bytes]:
        nonlocal size
        found = size + len(rest), b"" if size > LONGEST_SEARCHED else b"".join((*held, rest))
        held.clear()
        size = 0
        return found

    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield ended(line + b"\n")
        size += len(rest)
        if rest and size <= LONGEST_SEARCHED:
            held.append(rest)
        elif rest:
            held.clear()
    if size:
        yield ended(b"")

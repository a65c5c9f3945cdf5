"""Stretches of a file by line: where they are, and which of their lines are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec


class Extent(msgspec.Struct, frozen=True):
    """How much of a file there is; one that `is_whole` grows no more. `lines` is absent where nobody counted."""

    size_bytes: int
    is_whole: bool
    lines: int | None = None


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
    for number, line in enumerate(_lines(blocks), 1):
        at += len(line)
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
    for line in _lines(blocks):
        if is_match(line, search):
            yield line


def is_match(line: bytes, search: str) -> bool:
    """Whether the line has that in its custom_id."""
    try:
        return search.lower() in _decode(line).custom_id.lower()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines with their ends, across blocks."""
    held: list[bytes] = []
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield b"".join((*held, line, b"\n"))
            held.clear()
        if rest:
            held.append(rest)
    if held:
        yield b"".join(held)

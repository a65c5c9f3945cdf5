"""Splits an input file into blocks of whole lines, the unit in which it is validated and read again."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import msgspec

from batchline.models.plan import MAX_RANGE_LINES

SLICE_BYTES: Final = 2**16
UTF8_BOM: Final = b"\xef\xbb\xbf"


class LineBlock(msgspec.Struct, frozen=True):
    """Consecutive lines (without newlines, blank ones included) and their position in the file.

    `first_line` counts from 1; bytes `start` to `end` (exclusive) of the file contain the lines, and `sha256` is
    their digest. `too_long_bytes` is the length of a line over the limit: not kept, and the only one of its block.
    """

    first_line: int
    start: int
    end: int
    lines: list[bytes]
    sha256: str
    is_utf8: bool = True
    too_long_bytes: int = 0


def split_line_blocks(
    blocks: Iterator[bytes], *, max_line_bytes: int, max_lines: int = MAX_RANGE_LINES
) -> Iterator[LineBlock]:
    """Yield the file in blocks of at most `max_lines` lines; memory is bounded by the longest line allowed."""
    head = b""
    while len(head) < len(UTF8_BOM) and (block := next(blocks, None)) is not None:
        head += block
    # A byte-order mark belongs to no line: the first block starts after it.
    start = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
    splitter = _LineSplitter(max_line_bytes, max_lines, start)
    for block in itertools.chain([head[start:]], blocks):
        for offset in range(0, len(block), SLICE_BYTES):
            yield from splitter.feed(block[offset : offset + SLICE_BYTES])
    yield from splitter.finish()


class _LineSplitter:
    """Splits a stream of bytes, keeping the incomplete last line and its offset in the file."""

    def __init__(self, max_line_bytes: int, max_lines: int, offset: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._max_lines = max_lines
        self._next_line = 1
        self._offset = offset
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def feed(self, data: bytes) -> Iterator[LineBlock]:
        """Yield the blocks that the data completes."""
        lines_end = data.rfind(b"\n") + 1
        if not lines_end:
            self._keep_pending(data)
            return
        if self._pending_bytes > self._max_line_bytes:
            # The line over the limit ends in this data; skip it up to its newline.
            line_end = data.find(b"\n") + 1
            self._keep_pending(data[: line_end - 1])
            yield self._build_too_long_block(newline=1)
            data, lines_end = data[line_end:], lines_end - line_end
        if lines_end:
            yield from self._split_whole_lines(b"".join([*self._pending, data[:lines_end]]))
        self._pending = [data[lines_end:]]
        self._pending_bytes = len(data) - lines_end

    def finish(self) -> Iterator[LineBlock]:
        """Yield the rest at the end of the file: a line without a newline."""
        if self._pending_bytes > self._max_line_bytes:
            yield self._build_too_long_block()
        elif self._pending_bytes:
            yield from self._split_whole_lines(b"".join(self._pending), is_file_end=True)

    def _keep_pending(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        if self._pending_bytes <= self._max_line_bytes:
            self._pending.append(data)
        else:
            # Only its length is counted from here on, which bounds memory.
            self._pending.clear()

    def _build_too_long_block(self, *, newline: int = 0) -> LineBlock:
        end = self._offset + self._pending_bytes + newline
        line_block = LineBlock(self._next_line, self._offset, end, [], "", too_long_bytes=self._pending_bytes)
        self._next_line += 1
        self._offset = end
        self._pending, self._pending_bytes = [], 0
        return line_block

    def _split_whole_lines(self, text: bytes, *, is_file_end: bool = False) -> Iterator[LineBlock]:
        self._pending, self._pending_bytes = [], 0
        lines = text.split(b"\n")
        if not is_file_end:
            lines.pop()
        if len(lines) <= self._max_lines:
            yield self._build_block(text, lines)
            return
        offset = 0
        for start in range(0, len(lines), self._max_lines):
            group = lines[start : start + self._max_lines]
            end = min(len(text), offset + sum(map(len, group)) + len(group))
            yield self._build_block(text[offset:end], group)
            offset = end

    def _build_block(self, text: bytes, lines: list[bytes]) -> LineBlock:
        is_utf8 = text.isascii()
        if not is_utf8:
            with suppress(UnicodeDecodeError):
                text.decode()
                is_utf8 = True
        digest = hashlib.sha256(text).hexdigest()
        line_block = LineBlock(
            self._next_line, self._offset, self._offset + len(text), lines, digest, is_utf8=is_utf8
        )
        self._next_line += len(lines)
        self._offset += len(text)
        return line_block

"""Stretches: whole lines of an input file with their place, the unit in which it is checked and read again."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Final

import msgspec

from batchline.models.plan import STRETCH_LINES

PIECE_BYTES: Final = 2**16
UTF8_BOM: Final = b"\xef\xbb\xbf"


class Stretch(msgspec.Struct, frozen=True):
    """Some lines (without their newlines, blank ones included) and where they are.

    `first_line` counts from 1; bytes `start` to `end` (exclusive) of the file hold them, whose digest is `sha256`.
    `overlong` is the length of a line that was not kept because it passed the limit: the stretch's only one.
    """

    first_line: int
    start: int
    end: int
    lines: list[bytes]
    sha256: str
    is_utf8: bool = True
    overlong: int = 0


def stretches_of(
    blocks: Iterator[bytes], *, max_line_bytes: int, most_lines: int = STRETCH_LINES
) -> Iterator[Stretch]:
    """The file in stretches of at most so many lines; memory is bounded by the longest line allowed.

    A byte-order mark belongs to no line: the first stretch starts behind it.
    """
    head = b""
    while len(head) < len(UTF8_BOM) and (block := next(blocks, None)) is not None:
        head += block
    start = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
    cutter = _Cutter(max_line_bytes, most_lines, start)
    for block in itertools.chain([head[start:]], blocks):
        for at in range(0, len(block), PIECE_BYTES):
            yield from cutter.take(block[at : at + PIECE_BYTES])
    yield from cutter.finish()


class _Cutter:
    """Holds the line that is not whole yet, and where in the file it starts."""

    def __init__(self, max_line_bytes: int, most_lines: int, offset: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._most_lines = most_lines
        self._line = 1
        self._offset = offset
        self._held: list[bytes] = []
        self._held_bytes = 0

    def take(self, piece: bytes) -> Iterator[Stretch]:
        """The stretches that this piece completes."""
        cut = piece.rfind(b"\n") + 1
        if not cut:
            self._hold(piece)
            return
        if self._held_bytes > self._max_line_bytes:
            first = piece.find(b"\n") + 1
            self._hold(piece[: first - 1])
            yield self._overlong(newline=1)
            piece, cut = piece[first:], cut - first
        if cut:
            yield from self._whole(b"".join([*self._held, piece[:cut]]))
        self._held = [piece[cut:]]
        self._held_bytes = len(piece) - cut

    def finish(self) -> Iterator[Stretch]:
        """What is left at the file's end, a line without a newline."""
        if self._held_bytes > self._max_line_bytes:
            yield self._overlong()
        elif self._held_bytes:
            yield from self._whole(b"".join(self._held), ends=True)

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes <= self._max_line_bytes:
            self._held.append(piece)
        else:
            self._held.clear()

    def _overlong(self, *, newline: int = 0) -> Stretch:
        end = self._offset + self._held_bytes + newline
        stretch = Stretch(self._line, self._offset, end, [], "", overlong=self._held_bytes)
        self._line += 1
        self._offset = end
        self._held, self._held_bytes = [], 0
        return stretch

    def _whole(self, text: bytes, *, ends: bool = False) -> Iterator[Stretch]:
        self._held, self._held_bytes = [], 0
        lines = text.split(b"\n")
        if not ends:
            lines.pop()
        if len(lines) <= self._most_lines:
            yield self._stretch(text, lines)
            return
        at = 0
        for start in range(0, len(lines), self._most_lines):
            some = lines[start : start + self._most_lines]
            end = min(len(text), at + sum(map(len, some)) + len(some))
            yield self._stretch(text[at:end], some)
            at = end

    def _stretch(self, text: bytes, lines: list[bytes]) -> Stretch:
        stretch = Stretch(
            self._line,
            self._offset,
            self._offset + len(text),
            lines,
            hashlib.sha256(text).hexdigest(),
            _is_utf8(text),
        )
        self._line += len(lines)
        self._offset += len(text)
        return stretch


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Answers of an unfinished chunk: on disk in the order they came, found again in the order of the input.

A record is two lines, a request's figures and its result line, so that what is spooled is a segment's content
byte for byte and a segment read back is spooled as it is.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from types import TracebackType
from typing import Self

import msgspec

from batchline.steps.figures import Figures, decode_figures

_encode = msgspec.json.encode


class Spool:
    """A chunk's records in a temporary file, with an index from line number to place."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="batchline-", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0
        self._saved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, line: int) -> bool:
        return line in self._places

    @property
    def unsaved_bytes(self) -> int:
        """Bytes that no segment holds yet."""
        return self._end - self._saved

    def add(self, records: Iterable[tuple[Figures, bytes]]) -> None:
        """Take in settled requests with their result lines (newline included)."""
        pieces: list[bytes] = []
        for figures, result in records:
            record = _encode(figures) + b"\n" + result
            self._places[figures.line] = (self._end, len(record))
            self._end += len(record)
            pieces.append(record)
        _write_all(self._file.fileno(), b"".join(pieces))

    def recover(self, segment: bytes) -> list[Figures]:
        """Take in a segment that an earlier run saved; the figures of those records that are new."""
        lines = segment.split(b"\n")
        taken = []
        for head, result in zip(lines[0::2], lines[1::2], strict=False):
            figures = decode_figures(head)
            if figures.line not in self._places:
                self.add([(figures, result + b"\n")])
                taken.append(figures)
        self._saved = self._end
        return taken

    def unsaved(self) -> bytes:
        """What the next segment must hold."""
        return _read(self._file.fileno(), self._saved, self._end - self._saved)

    def mark_saved(self) -> None:
        """Note that a segment holds everything so far."""
        self._saved = self._end

    def in_order(self) -> Iterator[tuple[Figures, bytes]]:
        """Every record by ascending line number."""
        if not self._places:
            return
        # Mapped, not read: a read a record would give up and take back the interpreter's lock a record.
        with mmap(self._file.fileno(), self._end, access=ACCESS_READ) as spooled:
            for line in sorted(self._places):
                offset, length = self._places[line]
                head, _, result = spooled[offset : offset + length].partition(b"\n")
                yield decode_figures(head), result


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, offset: int, length: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            raise EOFError("the spool file is shorter than its index")
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)

"""Answers of an unfinished chunk: their lines on disk as they came, found again in the order of the input.

A *segment* is some records as they are saved: a line with the figures of all, a JSON array of arrays, and then the
result line of each in the same order.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from types import TracebackType
from typing import Self

import msgspec

from batchline.models.errors import StorageFault
from batchline.steps.figures import Figures

PIECE_BYTES = 2**20

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[Figures]).decode


class Spool:
    """A chunk's figures in memory and its result lines in a temporary file."""

    def __init__(self) -> None:
        self._file = _temporary_file()
        self._rows: list[Figures] = []
        self._ends = array("q")
        self._taken: set[int] = set()
        self._saved_rows = 0
        self._saved_end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, line: object) -> bool:
        return line in self._taken

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def completed(self) -> int:
        """How many of the requests succeeded."""
        return sum(row.ok for row in self._rows)

    @property
    def unsaved_bytes(self) -> int:
        """Bytes of result lines that no segment holds yet."""
        return self._end - self._saved_end

    def add(self, rows: Sequence[Figures], lines: Sequence[bytes]) -> None:
        """Take in settled requests with their result lines (newline included).

        A spool that has raised `StorageFault` is of no more use.
        """
        _write_all(self._file.fileno(), b"".join(lines))
        ends = accumulate(map(len, lines), initial=self._end)
        next(ends)
        self._ends.extend(ends)
        self._rows += rows
        self._taken.update([row.line for row in rows])

    def recover(self, segment: bytes) -> list[Figures]:
        """Take in a segment that an earlier run saved; the figures of those records that are new."""
        new = {row.line: (row, line + b"\n") for row, line in records_of(segment) if row.line not in self}
        rows = [row for row, _ in new.values()]
        self.add(rows, [line for _, line in new.values()])
        self.mark_saved()
        return rows

    def unsaved(self) -> Iterator[bytes]:
        """What the next segment must hold, in pieces."""
        yield _encode(self._rows[self._saved_rows :]) + b"\n"
        for at in range(self._saved_end, self._end, PIECE_BYTES):
            yield _read(self._file.fileno(), at, min(PIECE_BYTES, self._end - at))

    def mark_saved(self) -> None:
        """Note that a segment holds everything so far."""
        self._saved_rows, self._saved_end = len(self._rows), self._end

    def in_order(self) -> Iterator[tuple[Figures, bytes]]:
        """Every record by ascending line number."""
        if not self._rows:
            return
        # Mapped, not read: a read a record would give up and take back the interpreter's lock a record.
        with mmap(self._file.fileno(), self._end, access=ACCESS_READ) as spooled:
            rows, ends = self._rows, self._ends
            for at in sorted(range(len(rows)), key=[row.line for row in rows].__getitem__):
                yield rows[at], spooled[ends[at - 1] if at else 0 : ends[at]]


def records_of(segment: bytes) -> Iterator[tuple[Figures, bytes]]:
    """The segment's records: figures, and the result line without its newline."""
    head, _, rest = segment.partition(b"\n")
    return zip(_decode(head), rest.split(b"\n"), strict=False)


def _temporary_file() -> FileIO:
    try:
        return tempfile.TemporaryFile(prefix="batchline-", buffering=0)
    except OSError as error:
        raise _fault(error) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise _fault(error) from error


def _fault(error: OSError) -> StorageFault:
    return StorageFault(
        f"answers cannot be kept in the directory for temporary files: {error.strerror or error}; "
        "make room there, or set TMPDIR to another one"
    )


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

"""Answers of an unfinished chunk: their lines on disk as they came, found again in the order of the input.

A *segment* is some records as they are saved: a line with the figures of all, a JSON array of arrays, and then the
result line of each in the same order.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from io import FileIO
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from types import TracebackType
from typing import Self

import msgspec

from batchline.models.errors import StorageFault
from batchline.steps.figures import Figures
from batchline.storage.disk import pread

PIECE_BYTES = 2**20

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[Figures]).decode


class Spool:
    """A chunk's figures in memory and its result lines in a temporary file.

    Lines that the file does not take, as its disk is full, are kept in memory until `tidy` can write them.
    """

    def __init__(self) -> None:
        self._file = _temporary_file()
        self._file_end = 0
        self._overflow = b""
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

    @property
    def is_overflowing(self) -> bool:
        """True if lines are kept in memory, for want of room in the temporary file."""
        return bool(self._overflow)

    def add(self, rows: Sequence[Figures], lines: Sequence[bytes]) -> None:
        """Take in settled requests with their result lines (newline included); never fails."""
        new = b"".join(lines)
        self._overflow = self._overflow + new if self._overflow else new
        with suppress(StorageFault):
            self.tidy()
        ends = accumulate(map(len, lines), initial=self._end)
        next(ends)
        self._ends.extend(ends)
        self._rows += rows
        self._taken.update([row.line for row in rows])

    def tidy(self) -> None:
        """Write what is kept in memory to the temporary file; raises `StorageFault` if that is still full."""
        if self._overflow:
            # At a position, so that a write that failed halfway is overwritten by the next.
            _write_all(self._file.fileno(), self._overflow, self._file_end)
            self._file_end += len(self._overflow)
            self._overflow = b""

    def recover(self, segment: bytes) -> list[Figures]:
        """Take in a segment that an earlier run saved, and return the figures of the records that are new.

        Raises `StorageFault` if the temporary file does not take them.
        """
        new = {row.line: (row, line + b"\n") for row, line in records_of(segment) if row.line not in self}
        rows = [row for row, _ in new.values()]
        self.add(rows, [line for _, line in new.values()])
        self.mark_saved()
        self.tidy()
        return rows

    def unsaved(self) -> Iterator[bytes]:
        """What the next segment must hold, in pieces."""
        yield _encode(self._rows[self._saved_rows :]) + b"\n"
        for at in range(self._saved_end, self._end, PIECE_BYTES):
            yield self._lines(at, min(self._end, at + PIECE_BYTES))

    def _lines(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` of all result lines, in the order in which they came."""
        filed = pread(self._file, start, min(end, self._file_end))
        if len(filed) < min(end, self._file_end) - start:
            raise EOFError("the spool file is shorter than its index")
        kept = self._overflow[max(0, start - self._file_end) : max(0, end - self._file_end)]
        return filed + kept if kept else filed

    def mark_saved(self) -> None:
        """Note that a segment holds everything so far."""
        self._saved_rows, self._saved_end = len(self._rows), self._end

    def in_order(self) -> Iterator[tuple[Figures, bytes]]:
        """Every record by ascending line number."""
        if not self._rows:
            return
        rows, ends, filed = self._rows, self._ends, self._file_end
        # Mapped, not read: a read a record would give up and take back the interpreter's lock a record.
        with mmap(self._file.fileno(), filed, access=ACCESS_READ) if filed else nullcontext(b"") as spooled:
            for at in sorted(range(len(rows)), key=[row.line for row in rows].__getitem__):
                start, end = ends[at - 1] if at else 0, ends[at]
                yield rows[at], spooled[start:end] if end <= filed else self._lines(start, end)


def records_of(segment: bytes) -> Iterator[tuple[Figures, bytes]]:
    """The segment's records: figures, and the result line without its newline."""
    head, _, rest = segment.partition(b"\n")
    return zip(_decode(head), rest.split(b"\n"), strict=False)


def _temporary_file() -> FileIO:
    try:
        return tempfile.TemporaryFile(prefix="batchline-", buffering=0)
    except OSError as error:
        raise _fault(error) from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset += written
            view = view[written:]
    except OSError as error:
        raise _fault(error) from error


def _fault(error: OSError) -> StorageFault:
    return StorageFault(
        f"answers cannot be kept in the directory for temporary files: {error.strerror or error}; "
        "make room there, or set TMPDIR to another one"
    )

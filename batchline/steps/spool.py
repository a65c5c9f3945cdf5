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

from batchline.analytics.request_metrics import RequestMetrics
from batchline.models.errors import StorageFault
from batchline.storage.objects.disk import pread

READ_BLOCK_BYTES = 2**20

_encode_metrics = msgspec.json.encode
_decode_metrics = msgspec.json.Decoder(list[RequestMetrics]).decode


class Spool:
    """A chunk's figures in memory and its result lines in a temporary file.

    Lines that the file does not take, as its disk is full, are kept in memory until `tidy` can write them.
    """

    def __init__(self) -> None:
        self._file = _open_temporary_file()
        self._file_end = 0
        self._overflow = b""
        self._metrics: list[RequestMetrics] = []
        self._line_ends = array("q")
        self._line_numbers: set[int] = set()
        self._saved_rows = 0
        self._saved_end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._metrics)

    def __contains__(self, line: object) -> bool:
        return line in self._line_numbers

    @property
    def _total_bytes(self) -> int:
        return self._line_ends[-1] if self._line_ends else 0

    @property
    def completed(self) -> int:
        """How many of the requests succeeded."""
        return sum(row.ok for row in self._metrics)

    @property
    def unsaved_bytes(self) -> int:
        """Bytes of result lines that no segment holds yet."""
        return self._total_bytes - self._saved_end

    @property
    def is_overflowing(self) -> bool:
        """True if lines are kept in memory, for want of room in the temporary file."""
        return bool(self._overflow)

    def add(self, metrics: Sequence[RequestMetrics], lines: Sequence[bytes]) -> None:
        """Take in settled requests with their result lines (newline included); never fails."""
        data = b"".join(lines)
        self._overflow = self._overflow + data if self._overflow else data
        with suppress(StorageFault):
            self.write_overflow()
        ends = accumulate(map(len, lines), initial=self._total_bytes)
        next(ends)
        self._line_ends.extend(ends)
        self._metrics += metrics
        self._line_numbers.update([row.line for row in metrics])

    def write_overflow(self) -> None:
        """Write what is kept in memory to the temporary file; raises `StorageFault` if that is still full."""
        if self._overflow:
            # At a position, so that a write that failed halfway is overwritten by the next.
            _write_all(self._file.fileno(), self._overflow, self._file_end)
            self._file_end += len(self._overflow)
            self._overflow = b""

    def recover(self, segment: bytes) -> list[RequestMetrics]:
        """Take in a segment that an earlier run saved, and return the figures of the records that are new.

        Raises `StorageFault` if the temporary file does not take them.
        """
        new = {
            row.line: (row, line + b"\n") for row, line in parse_segment_records(segment) if row.line not in self
        }
        metrics = [row for row, _ in new.values()]
        self.add(metrics, [line for _, line in new.values()])
        self.mark_saved()
        self.write_overflow()
        return metrics

    def unsaved_blocks(self) -> Iterator[bytes]:
        """What the next segment must hold, in pieces."""
        yield _encode_metrics(self._metrics[self._saved_rows :]) + b"\n"
        for offset in range(self._saved_end, self._total_bytes, READ_BLOCK_BYTES):
            yield self._read_lines(offset, min(self._total_bytes, offset + READ_BLOCK_BYTES))

    def _read_lines(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` of all result lines, in the order in which they came."""
        from_file = pread(self._file, start, min(end, self._file_end))
        if len(from_file) < min(end, self._file_end) - start:
            raise EOFError("the spool file is shorter than its index")
        from_memory = self._overflow[max(0, start - self._file_end) : max(0, end - self._file_end)]
        return from_file + from_memory if from_memory else from_file

    def mark_saved(self) -> None:
        """Note that a segment holds everything so far."""
        self._saved_rows, self._saved_end = len(self._metrics), self._total_bytes

    def in_order(self) -> Iterator[tuple[RequestMetrics, bytes]]:
        """Every record by ascending line number."""
        if not self._metrics:
            return
        metrics, ends, file_end = self._metrics, self._line_ends, self._file_end
        # Mapped, not read: a read a record would give up and take back the interpreter's lock a record.
        with mmap(self._file.fileno(), file_end, access=ACCESS_READ) if file_end else nullcontext(b"") as mapped:
            for index in sorted(range(len(metrics)), key=[row.line for row in metrics].__getitem__):
                start, end = ends[index - 1] if index else 0, ends[index]
                yield metrics[index], mapped[start:end] if end <= file_end else self._read_lines(start, end)


def parse_segment_records(segment: bytes) -> Iterator[tuple[RequestMetrics, bytes]]:
    """The segment's records: figures, and the result line without its newline."""
    head, _, rest = segment.partition(b"\n")
    return zip(_decode_metrics(head), rest.split(b"\n"), strict=False)


def _open_temporary_file() -> FileIO:
    try:
        return tempfile.TemporaryFile(prefix="batchline-", buffering=0)
    except OSError as error:
        raise _temporary_file_fault(error) from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset += written
            view = view[written:]
    except OSError as error:
        raise _temporary_file_fault(error) from error


def _temporary_file_fault(error: OSError) -> StorageFault:
    return StorageFault(
        f"answers cannot be kept in the directory for temporary files: {error.strerror or error}; "
        "make room there, or set TMPDIR to another one"
    )

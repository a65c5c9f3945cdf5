"""Keeps the results of an unfinished chunk: appended on disk as they arrive, read back in input order.

A *segment* is a saved block of results: one line with all their metrics, a JSON array of arrays, followed by the
result lines in the same order.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from typing import Self

import msgspec

from batchline.analytics.request_metrics import RequestMetrics
from batchline.models.errors import StorageFault
from batchline.storage.objects.disk import pread

READ_BLOCK_BYTES = 2**20

_encode_metrics = msgspec.json.encode
_decode_metrics = msgspec.json.Decoder(list[RequestMetrics]).decode


class Spool:
    """A chunk's metrics in memory and its result lines in a temporary file; in memory if the disk is full."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="batchline-", buffering=0)  # noqa: SIM115 - closed by `__exit__`
        except OSError as error:
            raise _temporary_file_fault(error) from error
        self._file_end = 0
        self._overflow = b""
        self._metrics: list[RequestMetrics] = []
        self._line_ends = array("q")
        self._line_numbers: set[int] = set()
        self._saved_rows = 0
        self._saved_end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
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
        """Number of requests that succeeded."""
        return sum(row.ok for row in self._metrics)

    @property
    def unsaved_bytes(self) -> int:
        """Bytes of result lines not yet saved in a segment."""
        return self._total_bytes - self._saved_end

    @property
    def is_overflowing(self) -> bool:
        """True if lines are kept in memory because the temporary file could not be written."""
        return bool(self._overflow)

    def add(self, metrics: Sequence[RequestMetrics], lines: Sequence[bytes]) -> None:
        """Add settled requests with their result lines (newline included); never raises."""
        data = b"".join(lines)
        self._overflow = self._overflow + data if self._overflow else data
        # After a fault the lines stay in memory, for a later attempt.
        with suppress(StorageFault):
            self.write_overflow()
        ends = accumulate(map(len, lines), initial=self._total_bytes)
        next(ends)
        self._line_ends.extend(ends)
        self._metrics += metrics
        self._line_numbers.update([row.line for row in metrics])

    def write_overflow(self) -> None:
        """Write the lines kept in memory to the temporary file; raises `StorageFault` if that fails again."""
        # At an explicit offset, so that the next write overwrites one that failed halfway.
        view, offset = memoryview(self._overflow), self._file_end
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                offset += written
                view = view[written:]
        except OSError as error:
            raise _temporary_file_fault(error) from error
        self._file_end, self._overflow = offset, b""

    def recover(self, segment: bytes) -> list[RequestMetrics]:
        """Add a saved segment and return the metrics of new results; raises `StorageFault` if the disk is full."""
        new = {
            row.line: (row, line + b"\n") for row, line in parse_segment_records(segment) if row.line not in self
        }
        metrics = [row for row, _ in new.values()]
        # They are saved already, in the segment that they come from.
        self.add(metrics, [line for _, line in new.values()])
        self.mark_saved()
        self.write_overflow()
        return metrics

    def unsaved_blocks(self) -> Iterator[bytes]:
        """Yield the content of the next segment in blocks."""
        yield _encode_metrics(self._metrics[self._saved_rows :]) + b"\n"
        for offset in range(self._saved_end, self._total_bytes, READ_BLOCK_BYTES):
            yield self._read_lines(offset, min(self._total_bytes, offset + READ_BLOCK_BYTES))

    def _read_lines(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` of the result lines in order of arrival, from the file and from memory."""
        from_file = pread(self._file, start, min(end, self._file_end))
        if len(from_file) < min(end, self._file_end) - start:
            raise EOFError("the spool file is shorter than its index")
        from_memory = self._overflow[max(0, start - self._file_end) : max(0, end - self._file_end)]
        return from_file + from_memory if from_memory else from_file

    def mark_saved(self) -> None:
        """Record that all results so far are saved in segments."""
        self._saved_rows, self._saved_end = len(self._metrics), self._total_bytes

    def in_order(self) -> Iterator[tuple[RequestMetrics, bytes]]:
        """Yield the metrics and result line of every request by ascending line number."""
        if not self._metrics:
            return
        metrics, ends, file_end = self._metrics, self._line_ends, self._file_end
        # mmap avoids one release of the GIL per line, which a read would cost.
        with mmap(self._file.fileno(), file_end, access=ACCESS_READ) if file_end else nullcontext(b"") as mapped:
            for index in sorted(range(len(metrics)), key=[row.line for row in metrics].__getitem__):
                start, end = ends[index - 1] if index else 0, ends[index]
                yield metrics[index], mapped[start:end] if end <= file_end else self._read_lines(start, end)


def parse_segment_records(segment: bytes) -> Iterator[tuple[RequestMetrics, bytes]]:
    """Yield the metrics and the result line, without its newline, of each result in the segment."""
    head, _, rest = segment.partition(b"\n")
    return zip(_decode_metrics(head), rest.split(b"\n"), strict=False)


def _temporary_file_fault(error: OSError) -> StorageFault:
    return StorageFault(
        f"answers cannot be written to the directory for temporary files: {error.strerror or error}; "
        "free space there, or set TMPDIR to another directory"
    )

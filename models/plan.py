"""The plan of a batch: its input divided into chunks, with digests of the validated bytes."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

MAX_RANGE_LINES: Final = 500
"""Maximum lines of an input range, the unit in which an input is validated and read again."""

MAX_OPEN_CHUNKS: Final = 8
"""Chunks in flight per process: a few send requests, the others wait for their slowest responses."""


CHUNKS_PER_SENDER: Final = 4
"""Chunks per process if several send, so that one that is done early gets more work."""


class InputRange(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive whole lines of the input file, starting at line `first_line` (from 1).

    They are bytes `start` to `end` (exclusive) of the decompressed file; `sha256` is the hex digest of these.
    """

    start: int
    end: int
    first_line: int
    sha256: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The requests that one task sends: all lines of its ranges, or only the lines `only` in a retry.

    The ranges are in input order and their digests are checked as they are read; a retry's may have gaps between
    them. `requests` is the number of lines to send.
    """

    index: int
    requests: int
    ranges: list[InputRange] = msgspec.field(name="stretches")  # the name in plans that are stored already
    only: list[int] | None = None
    last_line: int = 0
    """The last line of its ranges; 0 if unknown, as in plans of earlier versions."""

    @property
    def first_line(self) -> int:
        """The first line of the chunk that is sent."""
        return self.only[0] if self.only else self.ranges[0].first_line

    @property
    def label(self) -> str:
        """The lines of the chunk, as the task run's name."""
        last_line = self.only[-1] if self.only else self.last_line
        lines_text = (
            f"lines {self.first_line:,} to {last_line:,}" if last_line else f"lines from {self.first_line:,}"
        )
        return f"{self.requests:,} of {lines_text}" if self.only else lines_text


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The chunks of a batch or of a retry, in input order, and the input that they were made from.

    `sha256` is the digest of the concatenated digests of all input ranges; `total` is the number of requests in
    the chunks. `completed` counts those of a retry that had completed before, and are sent again.
    """

    batch_id: str
    input_key: str
    size_bytes: int
    sha256: str
    endpoint: str
    total: int
    chunks: list[Chunk]
    models: list[str]
    completed: int = 0
    version: int = 1


def max_chunk_requests(total: int, *, senders: int = 1) -> int:
    """Return the maximum requests per chunk of a batch of `total` requests that `senders` processes send.

    A fifth of the batch, or a fourth of each process's share, but at least 500 and at most 15,000: few enough
    tasks for Prefect (about 60 ms of server CPU each), and enough to keep all processes busy to the end.
    """
    min_chunks = max(5, CHUNKS_PER_SENDER * senders)
    # Chunks consist of whole ranges. One range more avoids a further chunk for a few lines.
    return max(500, min(15_000, -(-total // min_chunks))) + MAX_RANGE_LINES


def plan_retry(
    plan: Plan,
    lines: Sequence[int],
    *,
    max_requests: int | None,
    max_bytes: int,
    senders: int = 1,
    completed: int = 0,
) -> Plan:
    """Return the plan to retry the requests on `lines` (ascending) of the batch that `plan` belongs to.

    `completed` of them had completed before.
    """
    input_ranges = [input_range for chunk in plan.chunks for input_range in chunk.ranges]
    request_limit = max_requests or max_chunk_requests(len(lines), senders=senders)
    chunks: list[Chunk] = []
    chunk_ranges: list[InputRange] = []
    chunk_lines: list[int] = []

    def close_chunk() -> None:
        if chunk_lines:
            chunks.append(
                Chunk(index=len(chunks), requests=len(chunk_lines), ranges=chunk_ranges[:], only=chunk_lines[:])
            )
        chunk_ranges.clear()
        chunk_lines.clear()

    for input_range, range_lines in _lines_by_range(input_ranges, lines):
        size_bytes = (
            sum(chunk_range.end - chunk_range.start for chunk_range in chunk_ranges)
            + input_range.end
            - input_range.start
        )
        # Count the whole range: all of its bytes are read to check its digest.
        if chunk_lines and (len(chunk_lines) + len(range_lines) > request_limit or size_bytes > max_bytes):
            close_chunk()
        chunk_ranges.append(input_range)
        chunk_lines += range_lines
    close_chunk()
    return msgspec.structs.replace(plan, total=len(lines), chunks=chunks, completed=completed)


def _lines_by_range(
    input_ranges: Sequence[InputRange], lines: Sequence[int]
) -> Iterator[tuple[InputRange, Sequence[int]]]:
    """Yield each range that contains some of the lines, with these lines."""
    first_lines = [input_range.first_line for input_range in input_ranges]
    position = 0
    while position < len(lines):
        range_index = bisect_right(first_lines, lines[position]) - 1
        end = (
            len(lines)
            if range_index + 1 == len(first_lines)
            else bisect_left(lines, first_lines[range_index + 1], position)
        )
        yield input_ranges[range_index], lines[position:end]
        position = end

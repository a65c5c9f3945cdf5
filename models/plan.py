"""What validation leaves behind: a batch's input cut into chunks, pinned to the bytes that were read."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

MAX_RANGE_LINES: Final = 500
"""Most lines of a stretch, the unit in which an input is checked and read again."""

MAX_OPEN_CHUNKS: Final = 8
"""Chunks under way at once in a process: a few that send, the others waiting for their slowest answers."""


CHUNKS_PER_SENDER: Final = 4
"""Chunks for each of several processes, which end at different times."""


class InputRange(msgspec.Struct, frozen=True, array_like=True):
    """Some whole lines of the input file, from line `first_line` (from 1) on.

    Bytes `start` to `end` (exclusive) of the decompressed file hold them, whose hex digest is `sha256`.
    """

    start: int
    end: int
    first_line: int
    sha256: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Input lines that one task sends: those of its stretches, or of these the lines `only` where it is a retry's.

    It has so many `requests`. Its stretches are in input order and are checked one by one as they are read; a
    retry's may have gaps between them.
    """

    index: int
    requests: int
    stretches: list[InputRange]
    only: list[int] | None = None
    last_line: int = 0
    """The last line of its stretches; 0 where that is not known, as in plans of earlier versions."""

    @property
    def first_line(self) -> int:
        """The first line that it sends."""
        return self.only[0] if self.only else self.stretches[0].first_line

    @property
    def label(self) -> str:
        """Which lines it sends, in words."""
        last_line = self.only[-1] if self.only else self.last_line
        lines_text = (
            f"lines {self.first_line:,} to {last_line:,}" if last_line else f"lines from {self.first_line:,}"
        )
        return f"{self.requests:,} of {lines_text}" if self.only else lines_text


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The chunks of a batch, or of a retry of some of its requests, in input order, and what they were cut from.

    `sha256` is the digest of the whole input's stretches' digests, one after another; `total` is the number of
    the chunks' requests.
    """

    batch_id: str
    input_key: str
    size_bytes: int
    sha256: str
    endpoint: str
    total: int
    chunks: list[Chunk]
    models: list[str]
    version: int = 1


def max_chunk_requests(total: int, *, senders: int = 1) -> int:
    """How many requests a chunk may hold in a batch that so many processes send.

    A fifth of the batch between 500 and 15,000, for several processes a fourth of the share of each: few enough
    tasks for Prefect (some 60 ms of server CPU each), enough of them to keep all processes at work to the end. A
    stretch more, so that chunks, which are made of whole ones, are not more than that for the sake of a few lines.
    """
    min_chunks = max(5, CHUNKS_PER_SENDER * senders)
    return max(500, min(15_000, -(-total // min_chunks))) + MAX_RANGE_LINES


def plan_retry(
    plan: Plan, lines: Sequence[int], *, max_requests: int | None, max_bytes: int, senders: int = 1
) -> Plan:
    """The plan of a retry of the requests on those lines (ascending) of a batch that was planned so."""
    input_ranges = [input_range for chunk in plan.chunks for input_range in chunk.stretches]
    request_limit = max_requests or max_chunk_requests(len(lines), senders=senders)
    chunks: list[Chunk] = []
    chunk_ranges: list[InputRange] = []
    chunk_lines: list[int] = []

    def close_chunk() -> None:
        if chunk_lines:
            chunks.append(
                Chunk(index=len(chunks), requests=len(chunk_lines), stretches=chunk_ranges[:], only=chunk_lines[:])
            )
        chunk_ranges.clear()
        chunk_lines.clear()

    for input_range, range_lines in _lines_by_range(input_ranges, lines):
        size_bytes = (
            sum(chunk_range.end - chunk_range.start for chunk_range in chunk_ranges)
            + input_range.end
            - input_range.start
        )
        if chunk_lines and (len(chunk_lines) + len(range_lines) > request_limit or size_bytes > max_bytes):
            close_chunk()
        chunk_ranges.append(input_range)
        chunk_lines += range_lines
    close_chunk()
    return msgspec.structs.replace(plan, total=len(lines), chunks=chunks)


def _lines_by_range(
    input_ranges: Sequence[InputRange], lines: Sequence[int]
) -> Iterator[tuple[InputRange, Sequence[int]]]:
    """Each stretch that has some of the lines, with them."""
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

"""What validation leaves behind: a batch's input cut into chunks, pinned to the bytes that were read."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

STRETCH_LINES: Final = 500
"""Most lines of a stretch, the unit in which an input is checked and read again."""

OPEN_CHUNKS: Final = 8
"""Chunks under way at once in a process: a few that send, the others waiting for their slowest answers."""


CHUNKS_A_SENDER: Final = 4
"""Chunks for each of several processes, which end at different times."""


class Stretch(msgspec.Struct, frozen=True, array_like=True):
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
    stretches: list[Stretch]
    only: list[int] | None = None
    last_line: int = 0
    """The last line of its stretches; 0 where that is not known, as in plans of earlier versions."""

    @property
    def first_line(self) -> int:
        """The first line that it sends."""
        return self.only[0] if self.only else self.stretches[0].first_line

    @property
    def range(self) -> str:
        """Which lines it sends, in words."""
        last = self.only[-1] if self.only else self.last_line
        words = f"lines {self.first_line:,} to {last:,}" if last else f"lines from {self.first_line:,}"
        return f"{self.requests:,} of {words}" if self.only else words


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


def chunk_requests(total: int, *, senders: int = 1) -> int:
    """How many requests a chunk may hold in a batch that so many processes send.

    A fifth of the batch between 500 and 15,000, for several processes a fourth of the share of each: few enough
    tasks for Prefect (some 60 ms of server CPU each), enough of them to keep all processes at work to the end. A
    stretch more, so that chunks, which are made of whole ones, are not more than that for the sake of a few lines.
    """
    wanted = max(5, CHUNKS_A_SENDER * senders)
    return max(500, min(15_000, -(-total // wanted))) + STRETCH_LINES


def retry_plan(
    plan: Plan, lines: Sequence[int], *, most_requests: int | None, most_bytes: int, senders: int = 1
) -> Plan:
    """The plan of a retry of the requests on those lines (ascending) of a batch that was planned so."""
    stretches = [stretch for chunk in plan.chunks for stretch in chunk.stretches]
    most = most_requests or chunk_requests(len(lines), senders=senders)
    chunks: list[Chunk] = []
    held: list[Stretch] = []
    only: list[int] = []

    def close() -> None:
        if only:
            chunks.append(Chunk(index=len(chunks), requests=len(only), stretches=held[:], only=only[:]))
        held.clear()
        only.clear()

    for stretch, wanted in _lines_by_stretch(stretches, lines):
        size = sum(each.end - each.start for each in held) + stretch.end - stretch.start
        if only and (len(only) + len(wanted) > most or size > most_bytes):
            close()
        held.append(stretch)
        only += wanted
    close()
    return msgspec.structs.replace(plan, total=len(lines), chunks=chunks)


def _lines_by_stretch(
    stretches: Sequence[Stretch], lines: Sequence[int]
) -> Iterator[tuple[Stretch, Sequence[int]]]:
    """Each stretch that has some of the lines, with them."""
    starts = [stretch.first_line for stretch in stretches]
    at = 0
    while at < len(lines):
        place = bisect_right(starts, lines[at]) - 1
        end = len(lines) if place + 1 == len(starts) else bisect_left(lines, starts[place + 1], at)
        yield stretches[place], lines[at:end]
        at = end

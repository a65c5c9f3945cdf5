"""What validation leaves behind: a batch's input cut into chunks, pinned to the bytes that were read."""

from typing import Final

import msgspec

STRETCH_LINES: Final = 500
"""Most lines of a stretch, the unit in which an input is checked and read again."""

OPEN_CHUNKS: Final = 8
"""Chunks under way at once in a process: a few that send, the others waiting for their slowest answers."""


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """Some whole lines of a chunk: up to byte `end` (exclusive), with the hex digest of their bytes."""

    end: int
    sha256: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A run of whole input lines that one task sends.

    Bytes `start` to `end` (exclusive) of the decompressed input file, whose first line is `first_line` (from
    1); `requests` of its lines are not blank. Its `stretches` are checked one by one as they are read.
    """

    index: int
    start: int
    end: int
    first_line: int
    requests: int
    stretches: list[Stretch]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The chunks of a batch, in input order, and what they were cut from.

    `sha256` is the digest of the stretches' digests, one after another.
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


def chunk_requests(total: int) -> int:
    """How many requests a chunk may hold.

    A fifth of the batch between 500 and 10,000: few enough tasks for Prefect (some 60 ms of server CPU each),
    enough of them to spread over machines. A stretch more, so that chunks, which are made of whole ones, are not
    more than that for the sake of a few lines.
    """
    return max(500, min(10_000, -(-total // 5))) + STRETCH_LINES

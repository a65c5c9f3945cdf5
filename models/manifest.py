"""The manifest of a batch's finished files: what they hold, where, and some of the failed requests."""

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed request, and where its line stands in the error file."""

    line: int
    custom_id: str
    error_code: str
    status_code: int | None
    offset: int
    length: int


class RowGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A row group of `requests.parquet`: its place among all rows, and the line of its first."""

    first_row: int
    rows: int
    first_line: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished generation of a batch is made of, in input order.

    `prefix` is where its files are, `base` where those are that a retry's results were laid over. `failed` counts
    the lines of the error file, `unanswered` those of them that a cancel or the end of the window left unanswered,
    `expired` the requests that the generation's own window closed on. `first_failures` are some of each code.
    `cancelled` is true if a cancel ended the generation.
    """

    batch_id: str
    generation: int
    prefix: str
    base: str | None
    completed: int
    failed: int
    expired: int
    output_bytes: int
    errors_bytes: int
    row_groups: list[RowGroup]
    first_failures: list[Failure] = []
    cancelled: bool = False
    unanswered: int = 0
    version: int = 1

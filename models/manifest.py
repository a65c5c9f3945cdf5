"""The manifest of a finished batch: its files, counts and some of its failed requests."""

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed request, and the position of its line in the error file, in bytes."""

    line: int
    custom_id: str
    error_code: str
    status_code: int | None
    offset: int
    length: int


class RowGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A row group of `requests.parquet`: its position among all rows, and the input line of its first row."""

    first_row: int
    rows: int
    first_line: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Files and counts of a finished generation of a batch.

    `prefix` is the prefix of its files, `base` that of the earlier generation whose results a retry replaced in
    part. `failed` counts the lines of the error file, `unanswered` those left unanswered by an expired window or a
    cancel, `expired` the requests that were open when this generation's own window closed. `first_failures` has
    some failures of each error code. `cancelled` is true if a cancel ended the generation.
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

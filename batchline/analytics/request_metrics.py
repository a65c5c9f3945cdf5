"""Defines the metrics of a settled request and the table that stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchline.models.error_codes import UNANSWERED_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa


class RequestMetrics(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One row of `requests.parquet`, without the columns that locate its result line.

    `started_at` is in Unix seconds, other times in milliseconds; tokens are None if the server reported none.
    """

    line: int
    ok: bool
    custom_id: str
    model: str | None
    status_code: int | None
    error_code: str | None
    attempts: int
    retries: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    total_tokens: int | None
    wasted_tokens: int
    started_at: float | None
    queued_ms: float | None
    duration_ms: float | None
    ttfb_ms: float | None
    # Rows that earlier versions saved end here.
    finish_reason: str | None = None
    mark: str | None = None

    @property
    def is_failed(self) -> bool:
        """True if the request failed, as opposed to being unanswered when its batch ended."""
        return not self.ok and self.error_code not in UNANSWERED_CODES


_decode_text = msgspec.json.Decoder(str).decode


def decode_custom_id(custom_id: msgspec.Raw) -> str:
    """Return the text of a custom_id given as JSON."""
    return _decode_text(custom_id)


DICTIONARY_COLUMNS = ("model", "error_code", "retries", "finish_reason", "mark")
"""Columns with few distinct values, stored as dictionaries; for other columns these cost more than they save."""


def metrics_schema() -> pa.Schema:
    """Return the schema of a part's metrics and of `requests.parquet`.

    `offset` and `length` locate the result line, with its newline, in the output file if `ok` is true, else in the
    error file. In a part, offsets count from the part's start.
    """
    import pyarrow as pa  # noqa: PLC0415 - half a second that must not delay the first request

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("line", pa.int64()),
            ("ok", pa.bool_()),
            ("custom_id", pa.string()),
            ("model", text),
            ("status_code", pa.int16()),
            ("error_code", text),
            ("attempts", pa.int32()),
            ("retries", text),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("reasoning_tokens", pa.int64()),
            ("cached_tokens", pa.int64()),
            ("cache_write_tokens", pa.int64()),
            ("total_tokens", pa.int64()),
            ("wasted_tokens", pa.int64()),
            ("started_at", pa.float64()),
            ("queued_ms", pa.float64()),
            ("duration_ms", pa.float64()),
            ("ttfb_ms", pa.float64()),
            ("finish_reason", text),
            ("mark", text),
            ("offset", pa.int64()),
            ("length", pa.int64()),
        ]
    )


def to_metrics_schema(table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table with `metrics_schema()`'s columns, or some of them; those that it does not have are null.

    Earlier versions left out the last ones.
    """
    import pyarrow as pa  # noqa: PLC0415 - as above

    fields = [field for field in metrics_schema() if columns is None or field.name in columns]
    arrays = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, pa.string()).cast(field.type)
        for field in fields
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def count_unanswered(table: pa.Table) -> int:
    """Return the number of the table's requests that were unanswered when their batch ended."""
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    code_counts = pc.value_counts(table["error_code"]).to_pylist()
    return sum(entry["counts"] for entry in code_counts if entry["values"] in UNANSWERED_CODES)


def build_table(rows: Sequence[RequestMetrics], *, offsets: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    """Return the rows as an Arrow table with `metrics_schema()`'s columns."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    table_schema = metrics_schema()
    columns: list[Sequence[object]] = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
    if not columns:
        columns = [()] * len(RequestMetrics.__struct_fields__)
    columns += [offsets, lengths]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, table_schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=table_schema)

"""The figures of one settled request, and the table that a part keeps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchline.models.error_codes import UNANSWERED_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa


class RequestMetrics(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One row of `requests.parquet`, but for the columns that say where its result line stands.

    Times in milliseconds but `started_at`, which is in Unix seconds; tokens are None where none were reported.
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

    @property
    def is_failed(self) -> bool:
        """True if it failed, and was not merely left unanswered by the end of its batch."""
        return not self.ok and self.error_code not in UNANSWERED_CODES


_decode_text = msgspec.json.Decoder(str).decode


def decode_custom_id(custom_id: msgspec.Raw) -> str:
    """The text of a custom_id's JSON."""
    return _decode_text(custom_id)


DICTIONARY_COLUMNS = ("model", "error_code", "retries")
"""Columns of few values, which are kept as dictionaries; a dictionary costs the others more than it saves."""


def metrics_schema() -> pa.Schema:
    """The columns of a part's figures and of `requests.parquet`.

    `offset` and `length` place the result line, with its newline, in the file that `ok` names: the output file
    for true, the error file for false. In a part they count from the part's start.
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
            ("offset", pa.int64()),
            ("length", pa.int64()),
        ]
    )


def count_unanswered(table: pa.Table) -> int:
    """Return how many of the table's requests were left unanswered by the end of their batch."""
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    code_counts = pc.value_counts(table["error_code"]).to_pylist()
    return sum(entry["counts"] for entry in code_counts if entry["values"] in UNANSWERED_CODES)


def build_table(rows: Sequence[RequestMetrics], *, offsets: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    """The rows as an Arrow table with `schema()`'s columns."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    table_schema = metrics_schema()
    columns: list[Sequence[object]] = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
    if not columns:
        columns = [()] * len(RequestMetrics.__struct_fields__)
    columns += [offsets, lengths]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, table_schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=table_schema)

"""The figures of one settled request, and the table that a part keeps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchline.models.failures import UNANSWERED
from batchline.upstream.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa


class Figures(msgspec.Struct, array_like=True, frozen=True, gc=False):
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
    def failed(self) -> bool:
        """True if it failed, and was not merely left unanswered by the end of its batch."""
        return not self.ok and self.error_code not in UNANSWERED


_decode_text = msgspec.json.Decoder(str).decode


def figures_of(answer: Answer) -> Figures:
    """The figures of a settled request; `retries` joins the reasons of its repeated attempts with commas."""
    usage = answer.usage
    return Figures(
        answer.call.line,
        answer.code is None,
        custom_id_text(answer.call.custom_id),
        answer.call.model,
        answer.status_code,
        answer.code,
        answer.attempts,
        ",".join(answer.retries),
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
        usage.reasoning_tokens if usage else None,
        usage.cached_tokens if usage else None,
        usage.cache_write_tokens if usage else None,
        usage.total_tokens if usage else None,
        answer.wasted_tokens,
        answer.started_at if answer.attempts else None,
        answer.queued_s * 1e3 if answer.queued_s is not None else None,
        answer.duration_s * 1e3 if answer.duration_s is not None else None,
        answer.ttfb_s * 1e3 if answer.ttfb_s is not None else None,
    )


def custom_id_text(custom_id: msgspec.Raw) -> str:
    """The text of a custom_id's JSON."""
    return _decode_text(custom_id)


TEXTS = ("model", "error_code", "retries")
"""Columns of few values, which are kept as dictionaries; a dictionary costs the others more than it saves."""


def schema() -> pa.Schema:
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


def unanswered_in(table: pa.Table) -> int:
    """Return how many of the table's requests were left unanswered by the end of their batch."""
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    counted = pc.value_counts(table["error_code"]).to_pylist()
    return sum(each["counts"] for each in counted if each["values"] in UNANSWERED)


def table_of(rows: Sequence[Figures], *, offsets: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    """The rows as an Arrow table with `schema()`'s columns."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    wanted = schema()
    columns: list[Sequence[object]] = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
    if not columns:
        columns = [()] * len(Figures.__struct_fields__)
    columns += [offsets, lengths]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, wanted, strict=True)]
    return pa.Table.from_arrays(arrays, schema=wanted)

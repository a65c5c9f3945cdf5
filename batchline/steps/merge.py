"""Merges a batch's rows in input order: those of a retry replace those of the earlier generation.

A completed request that a retry took up and left unanswered keeps its earlier row: its answer is still valid.

A *source* is a pair of objects that contain result lines: of a part, or of a generation's final files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING, Final, NamedTuple

from batchline.analytics.request_metrics import metrics_schema, to_metrics_schema
from batchline.models.error_codes import BATCH_END_CODES, ErrorCode
from batchline.storage.objects import layout
from batchline.storage.objects.readers import StoredFile
from batchline.storage.objects.store import ObjectStore

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from batchline.steps.parts import Part


_TOKEN_COLUMNS: Final = ("total_tokens", "prompt_tokens", "completion_tokens")


class MergedRows(NamedTuple):
    """Rows in input order with `metrics_schema()`'s columns, and for each row the source of its `offset`."""

    table: pa.Table
    source_numbers: np.ndarray
    sources: Sequence[layout.PartKeys | layout.FinalKeys]


def merge_rows(store: ObjectStore, parts: Sequence[Part], base: str | None) -> Iterator[MergedRows]:
    """Yield the rows of all requests: those of the parts, over those of the final files below `base`.

    The parts are in input order; without a `base`, they are all rows. Each table is a part or a row group.
    """
    new_rows = _read_parts(store, parts)
    if base is None:
        yield from new_rows
        return
    base_keys = layout.final_keys(base)
    overlay = _Overlay(new_rows)
    for table in read_row_groups(store, base_keys.requests):
        yield overlay.apply(table, base_keys)


def _read_parts(store: ObjectStore, parts: Sequence[Part]) -> Iterator[MergedRows]:
    import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    for part in parts:
        table = to_metrics_schema(pq.read_table(io.BytesIO(store.read(part.keys.metrics))))
        yield MergedRows(table, np.zeros(table.num_rows, "int32"), [part.keys])


def read_row_groups(
    store: ObjectStore, key: str, *, columns: Sequence[str] | None = None, first: int = 0
) -> Iterator[pa.Table]:
    """Yield the row groups of a `requests.parquet`, starting with number `first` (from 0)."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    with pq.ParquetFile(StoredFile(store, key)) as file:
        for group in range(first, file.num_row_groups):
            yield to_metrics_schema(file.read_row_group(group, columns=columns), columns)


def _add_earlier_attempts(new: pa.Table, old: pa.Table) -> pa.Table:
    """Add the attempts, retry reasons and wasted tokens of the old rows to the new rows of the same requests.

    The tokens of an answer that is replaced are wasted, and its mark is the reason for the retry.
    """
    import pyarrow as pa  # noqa: PLC0415 - as above

    names = ("attempts", "wasted_tokens", "retries", "error_code", "mark", *_TOKEN_COLUMNS)
    now, before = ({name: table[name].to_pylist() for name in names} for table in (new, old))
    attempts, wasted, retries = [], [], []
    for index, attempts_before in enumerate(before["attempts"]):
        attempts.append(attempts_before + now["attempts"][index])
        total, prompt, completion = (before[name][index] or 0 for name in _TOKEN_COLUMNS)
        is_replaced = before["error_code"][index] is None
        replaced_tokens = (total or prompt + completion) if is_replaced else 0
        wasted.append(before["wasted_tokens"][index] + replaced_tokens + now["wasted_tokens"][index])
        # The last attempt of the old row was repeated only if the retry made one.
        is_repeated = attempts_before and now["attempts"][index]
        reason = (before["error_code"][index] or before["mark"][index]) if is_repeated else None
        retries.append(",".join(filter(None, (before["retries"][index], reason, now["retries"][index]))))
    for name, values in (("attempts", attempts), ("wasted_tokens", wasted), ("retries", retries)):
        column_index = new.schema.get_field_index(name)
        field = metrics_schema().field(name)
        new = new.set_column(
            column_index,
            field,
            pa.array(values, pa.string() if name == "retries" else field.type).cast(field.type),
        )
    return new


def has_error_code(table: pa.Table, codes: Set[ErrorCode]) -> np.ndarray:
    """Return a flag for each row, true if its error code is one of the codes."""
    import pyarrow as pa  # noqa: PLC0415 - as above
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    value_set = pa.array(sorted(codes), pa.string())
    flags: np.ndarray = pc.is_in(table["error_code"].cast(pa.string()), value_set).to_numpy()
    return flags


class _Overlay:
    """Rows in input order that replace earlier ones, read only as far as needed."""

    def __init__(self, rows: Iterator[MergedRows]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def apply(self, table: pa.Table, source: layout.PartKeys | layout.FinalKeys) -> MergedRows:
        """Return the table with the rows of the same lines replaced by the overlay's."""
        import numpy as np  # noqa: PLC0415 - as above
        import pyarrow as pa  # noqa: PLC0415 - as above

        lines = table["line"].to_numpy()
        row_indexes, tables = np.arange(len(lines)), [table]
        source_numbers, sources = [np.zeros(len(lines), "int32")], [source]
        next_index = len(lines)
        last = int(lines[-1]) if len(lines) else 0
        # New rows are appended to the old ones; `row_indexes` then selects them instead of the old.
        while self._next is not None and self._next.table["line"][0].as_py() <= last:
            new = self._take_until(self._next, last)
            positions = np.searchsorted(lines, new.table["line"].to_numpy())
            # A retry has only lines of the base, so each position is an exact match.
            old = table.take(pa.array(positions))
            replaces = ~(old["ok"].to_numpy() & has_error_code(new.table, BATCH_END_CODES))
            if not replaces.all():
                positions, old = positions[replaces], old.filter(pa.array(replaces))
                new = MergedRows(new.table.filter(pa.array(replaces)), new.source_numbers[replaces], new.sources)
            new = new._replace(table=_add_earlier_attempts(new.table, old))
            row_indexes[positions] = next_index + np.arange(new.table.num_rows)
            next_index += new.table.num_rows
            tables.append(new.table)
            source_numbers.append(new.source_numbers + len(sources))
            sources += new.sources
        if len(tables) == 1:
            return MergedRows(table, source_numbers[0], sources)
        combined = pa.concat_tables(tables).unify_dictionaries()
        return MergedRows(
            combined.take(pa.array(row_indexes)), np.concatenate(source_numbers)[row_indexes], sources
        )

    def _take_until(self, rows: MergedRows, last: int) -> MergedRows:
        """Return the rows up to line `last`; keep the rest for the next call."""
        table, source_numbers, sources = rows
        count = int((table["line"].to_numpy() <= last).sum())
        if count == table.num_rows:
            self._next = next(self._rows, None)
            return rows
        self._next = MergedRows(table.slice(count), source_numbers[count:], sources)
        return MergedRows(table.slice(0, count), source_numbers[:count], sources)

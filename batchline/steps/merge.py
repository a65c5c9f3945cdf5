"""A batch's rows in input order: what an earlier generation settled, and over it a retry's.

A *source* is a set of objects that rows place their result lines in: a part, or the final files of a generation.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from batchline.steps.figures import schema
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.storage.reading import StoredFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from batchline.steps.parts import Part


class Source(NamedTuple):
    """Where result lines are: keys of the successes' and of the failures' lines."""

    output: str
    errors: str


class Merged(NamedTuple):
    """Some rows in input order: `schema()`'s columns, and for each row the source that `offset` counts in."""

    table: pa.Table
    origins: np.ndarray
    sources: Sequence[Source]


def merged(store: ObjectStore, parts: Sequence[Part], base: str | None) -> Iterator[Merged]:
    """The rows of all requests: those of the parts, in place of the same lines' in the final files below `base`.

    The parts are in input order; with no `base` they are all there is. A part or a row group at a time.
    """
    overlay = _rows_of_parts(store, parts)
    if base is None:
        yield from overlay
        return
    old = layout.final_keys(base)
    laid = _Overlay(overlay)
    for table in row_groups(store, old.requests):
        yield laid.over(table, Source(old.output, old.errors))


def _rows_of_parts(store: ObjectStore, parts: Sequence[Part]) -> Iterator[Merged]:
    import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    for part in parts:
        table = pq.read_table(io.BytesIO(store.read(part.keys.figures))).cast(schema())
        source = Source(part.keys.output, part.keys.errors)
        yield Merged(table, np.zeros(table.num_rows, "int32"), [source])


def row_groups(
    store: ObjectStore, key: str, *, columns: Sequence[str] | None = None, first: int = 0
) -> Iterator[pa.Table]:
    """The row groups of that `requests.parquet` from the one numbered `first` (from 0) on, one after another."""
    import pyarrow as pa  # noqa: PLC0415 - as above
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    wanted = schema() if columns is None else pa.schema([schema().field(name) for name in columns])
    with pq.ParquetFile(StoredFile(store, key)) as file:
        for group in range(first, file.num_row_groups):
            yield file.read_row_group(group, columns=wanted.names).cast(wanted)


def _with_earlier_attempts(new: pa.Table, old: pa.Table) -> pa.Table:
    """Add the attempts of the same requests' rows before the retry, why they were repeated, and their waste."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    names = ("attempts", "wasted_tokens", "retries", "error_code")
    now, before = ({name: table[name].to_pylist() for name in names} for table in (new, old))
    attempts, wasted, retries = [], [], []
    for n, made in enumerate(before["attempts"]):
        attempts.append(made + now["attempts"][n])
        wasted.append(before["wasted_tokens"][n] + now["wasted_tokens"][n])
        # The last attempt before is repeated only if the retry made one.
        last = before["error_code"][n] if made and now["attempts"][n] else None
        retries.append(",".join(filter(None, (before["retries"][n], last, now["retries"][n]))))
    for name, values in (("attempts", attempts), ("wasted_tokens", wasted), ("retries", retries)):
        place = new.schema.get_field_index(name)
        field = schema().field(name)
        new = new.set_column(
            place, field, pa.array(values, pa.string() if name == "retries" else field.type).cast(field.type)
        )
    return new


class _Overlay:
    """Rows in input order that take the place of earlier ones, handed out as far as they are needed."""

    def __init__(self, rows: Iterator[Merged]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def over(self, table: pa.Table, source: Source) -> Merged:
        """The table with the overlay's rows for the same lines in place of its own."""
        import numpy as np  # noqa: PLC0415 - as above
        import pyarrow as pa  # noqa: PLC0415 - as above

        lines = table["line"].to_numpy()
        taken, pieces = np.arange(len(lines)), [table]
        origins, sources = [np.zeros(len(lines), "int32")], [source]
        behind = len(lines)
        last = int(lines[-1]) if len(lines) else 0
        while self._next is not None and self._next.table["line"][0].as_py() <= last:
            new = self._take(self._next, last)
            places = np.searchsorted(lines, new.table["line"].to_numpy())
            new = new._replace(table=_with_earlier_attempts(new.table, table.take(pa.array(places))))
            taken[places] = behind + np.arange(new.table.num_rows)
            behind += new.table.num_rows
            pieces.append(new.table)
            origins.append(new.origins + len(sources))
            sources += new.sources
        if len(pieces) == 1:
            return Merged(table, origins[0], sources)
        everything = pa.concat_tables(pieces).unify_dictionaries()
        return Merged(everything.take(pa.array(taken)), np.concatenate(origins)[taken], sources)

    def _take(self, some: Merged, last: int) -> Merged:
        """Those next rows up to that line; the rest comes next."""
        table, origins, sources = some
        count = int((table["line"].to_numpy() <= last).sum())
        if count == table.num_rows:
            self._next = next(self._rows, None)
            return some
        self._next = Merged(table.slice(count), origins[count:], sources)
        return Merged(table.slice(0, count), origins[:count], sources)

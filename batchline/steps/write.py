"""Joins a batch's parts into its files: output and errors in input order, figures, and a manifest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from batchline.steps.figures import TEXTS, schema
from batchline.steps.parts import Part
from batchline.storage import layout
from batchline.storage.objects import ObjectStore, ObjectWriter

if TYPE_CHECKING:
    import pyarrow as pa


class PartEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A part's place in the batch's files: rows of `requests.parquet`, bytes of the line files."""

    chunk: int
    first_row: int
    rows: int
    output_start: int
    errors_start: int
    figures_key: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished generation of a batch is made of, in input order."""

    batch_id: str
    generation: int
    completed: int
    failed: int
    output_bytes: int
    errors_bytes: int
    parts: list[PartEntry]
    version: int = 1


def write_files(store: ObjectStore, batch_id: str, generation: int, parts: Sequence[Part]) -> Manifest:
    """Write the batch's files from its parts (in chunk order) and return their manifest; safe to repeat.

    Each file is there whole or not at all, and the manifest comes last.
    """
    store.concat([part.keys.output for part in parts], layout.output_key(batch_id))
    store.concat([part.keys.errors for part in parts], layout.errors_key(batch_id))
    manifest = _write_figures(store, batch_id, generation, parts)
    store.put(layout.manifest_key(batch_id), msgspec.json.encode(manifest))
    return manifest


def _write_figures(store: ObjectStore, batch_id: str, generation: int, parts: Sequence[Part]) -> Manifest:
    """Join the parts' figures with their offsets moved to the joined files."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - half a second that must not delay the first request

    entries: list[PartEntry] = []
    row = output = errors = 0
    with (
        store.writer(layout.requests_key(batch_id)) as file,
        pq.ParquetWriter(_Sink(file), schema(), compression="zstd", use_dictionary=list(TEXTS)) as writer,
    ):
        for part in parts:
            table = pq.read_table(io.BytesIO(store.read(part.keys.figures)))
            entries.append(
                PartEntry(
                    chunk=part.chunk,
                    first_row=row,
                    rows=table.num_rows,
                    output_start=output,
                    errors_start=errors,
                    figures_key=part.keys.figures,
                )
            )
            moved, output, errors = _moved(table, output, errors)
            writer.write_table(moved)
            row += table.num_rows
    return Manifest(
        batch_id=batch_id,
        generation=generation,
        completed=sum(part.completed for part in parts),
        failed=sum(part.failed for part in parts),
        output_bytes=output,
        errors_bytes=errors,
        parts=entries,
    )


def _moved(table: pa.Table, output: int, errors: int) -> tuple[pa.Table, int, int]:
    """The table with offsets from the joined files' start, and where the next part starts in each."""
    import pyarrow as pa  # noqa: PLC0415 - as above
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    starts = pc.if_else(table["ok"], pa.scalar(output, pa.int64()), pa.scalar(errors, pa.int64()))
    place = table.schema.get_field_index("offset")
    moved = table.set_column(place, "offset", pc.add(table["offset"], starts)).cast(schema())
    return moved, output + _bytes(table, ok=True), errors + _bytes(table, ok=False)


def _bytes(table: pa.Table, *, ok: bool) -> int:
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    mask = table["ok"] if ok else pc.invert(table["ok"])
    return int(pc.sum(table["length"].filter(mask)).as_py() or 0)


class _Sink(io.RawIOBase):
    """A storage writer as the file object that pyarrow wants."""

    def __init__(self, writer: ObjectWriter) -> None:
        super().__init__()
        self._writer = writer
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        self._writer.write(bytes(data))
        self._written += len(data)
        return len(data)

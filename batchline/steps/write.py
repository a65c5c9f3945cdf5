"""Writes a batch's files: output and errors in input order, figures, and a manifest.

A batch's first files are written where everybody finds them. A retry moves them aside and writes its own below a
prefix of its runner's, so that readers, who are told by the batch's record, see the old ones until all is there.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batchline.models.errors import NotFound
from batchline.steps.figures import TEXTS, schema, unanswered_in
from batchline.steps.merge import Merged, Source, merged
from batchline.steps.parts import Part
from batchline.steps.report.samples import Failure, FirstFailures
from batchline.storage import layout
from batchline.storage.objects import ObjectStore, ObjectWriter
from batchline.storage.reading import RangeReader

if TYPE_CHECKING:
    import numpy as np

COPIED_BYTES: Final = 8 * 2**20
"""What is read at once of a file whose lines are copied one by one."""

OPEN_READERS: Final = 4
"""The output and the error file of two sources, between which the rows of a retried batch change to and fro."""


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


def write_files(
    store: ObjectStore,
    batch_id: str,
    generation: int,
    parts: Sequence[Part],
    *,
    prefix: str,
    base: str | None = None,
    cancelled: bool = False,
) -> Manifest:
    """Write the batch's files below the prefix and return their manifest, which is there when all are.

    The parts are the generation's, in chunk order; `base` is the prefix of the files that they are laid over.
    """
    keys = layout.final_keys(prefix)
    if base is None:
        store.concat([part.keys.output for part in parts if part.completed], keys.output)
        store.concat([part.keys.errors for part in parts if part.failed], keys.errors)
    with _Files(store, keys, lines=base is not None) as files:
        for some in merged(store, parts, base):
            files.add(some)
    manifest = Manifest(
        batch_id=batch_id,
        generation=generation,
        prefix=prefix,
        base=base,
        completed=files.completed,
        failed=files.failed,
        unanswered=files.unanswered,
        expired=sum(part.expired for part in parts),
        output_bytes=files.output_bytes,
        errors_bytes=files.errors_bytes,
        row_groups=files.row_groups,
        first_failures=files.first_failures.all(),
        cancelled=cancelled,
    )
    store.put(keys.manifest, msgspec.json.encode(manifest))
    return manifest


_decode_manifest = msgspec.json.Decoder(Manifest).decode


def read_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """The manifest of the final files below that prefix, which they may have been copied to; raises `NotFound`."""
    found = _decode_manifest(store.read(layout.final_keys(prefix).manifest))
    return msgspec.structs.replace(found, prefix=prefix)


def finished_manifest(store: ObjectStore, batch_id: str, *, generation: int) -> Manifest | None:
    """The newest manifest of that generation or a later one whose files are all on storage, or None."""
    try:
        found = _decode_manifest(store.read(layout.manifest_key(batch_id)))
    except NotFound:
        return None
    if found.batch_id != batch_id or found.generation < generation:
        return None
    for prefix in dict.fromkeys((found.prefix, layout.batch_prefix(batch_id))):
        if _is_whole(store, found, prefix):
            return msgspec.structs.replace(found, prefix=prefix)
    return None


def _is_whole(store: ObjectStore, manifest: Manifest, prefix: str) -> bool:
    """True if the files below the prefix are there, with the sizes that the manifest has."""
    keys = layout.final_keys(prefix)
    sizes = ((keys.output, manifest.output_bytes), (keys.errors, manifest.errors_bytes))
    try:
        return bool(store.info(keys.requests).size_bytes) and all(
            not size or store.info(key).size_bytes == size for key, size in sizes
        )
    except NotFound:
        return False


def publish(store: ObjectStore, batch_id: str, prefix: str) -> None:
    """Put copies of the final files below the prefix under the names that outsiders know."""
    for key, target in zip(layout.final_keys(prefix), layout.published_keys(batch_id), strict=True):
        store.copy(key, target)


class _Files:
    """The files as they grow: figures always, result lines where they cannot be joined whole."""

    def __init__(self, store: ObjectStore, keys: layout.FinalKeys, *, lines: bool) -> None:
        self.completed = self.failed = self.unanswered = self.output_bytes = self.errors_bytes = 0
        self.row_groups: list[RowGroup] = []
        self.first_failures = FirstFailures()
        self._store = store
        self._keys = keys
        self._lines = lines
        self._stack = ExitStack()
        self._readers: OrderedDict[str, RangeReader] = OrderedDict()

    def __enter__(self) -> _Files:
        import pyarrow.parquet as pq  # noqa: PLC0415 - as above

        with ExitStack() as stack:
            enter = stack.enter_context
            if self._lines:
                self._output = enter(self._store.writer(self._keys.output))
                self._errors = enter(self._store.writer(self._keys.errors))
            figures = _Sink(enter(self._store.writer(self._keys.requests)))
            self._figures = enter(
                pq.ParquetWriter(figures, schema(), compression="zstd", use_dictionary=list(TEXTS))
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, some: Merged) -> None:
        """Append those rows."""
        import numpy as np  # noqa: PLC0415 - as above
        import pyarrow as pa  # noqa: PLC0415 - as above

        table, rows = some.table, some.table.num_rows
        if not rows:
            return
        ok = table["ok"].to_numpy(zero_copy_only=False)
        offsets, lengths = table["offset"].to_numpy(), table["length"].to_numpy()
        if self._lines:
            self._copy(some, ok, offsets, lengths)
        first_line = int(table["line"][0].as_py())
        self.row_groups.append(RowGroup(first_row=self.completed + self.failed, rows=rows, first_line=first_line))
        moved = np.where(
            ok,
            self.output_bytes + np.cumsum(lengths * ok) - lengths,
            self.errors_bytes + np.cumsum(lengths * ~ok) - lengths,
        )
        place = table.schema.get_field_index("offset")
        table = table.set_column(place, "offset", pa.array(moved)).cast(schema())
        self._figures.write_table(table, rows)
        self.first_failures.add(table)
        self.completed += int(ok.sum())
        self.failed += int((~ok).sum())
        self.unanswered += unanswered_in(table)
        self.output_bytes += int(lengths[ok].sum())
        self.errors_bytes += int(lengths[~ok].sum())

    def _copy(self, some: Merged, ok: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        for is_ok, file in ((True, self._output), (False, self._errors)):
            rows = ok == is_ok
            for origin, start, end in _runs(some.origins[rows], offsets[rows], lengths[rows]):
                reader = self._reader(some.sources[origin], ok=is_ok)
                for at in range(start, end, COPIED_BYTES):
                    file.write(reader.read(at, min(end, at + COPIED_BYTES)))

    def _reader(self, source: Source, *, ok: bool) -> RangeReader:
        key = source.output if ok else source.errors
        reader = self._readers.pop(key, None) or RangeReader(self._store, key, ahead_bytes=COPIED_BYTES)
        self._readers[key] = reader
        if len(self._readers) > OPEN_READERS:
            self._readers.popitem(last=False)
        return reader


def _runs(origins: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Lines that lie one behind the other in one source, together: the source, first byte, end (exclusive)."""
    import numpy as np  # noqa: PLC0415 - as above

    if not len(offsets):
        return
    ends = offsets + lengths
    breaks = (origins[1:] != origins[:-1]) | (offsets[1:] != ends[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lasts = np.concatenate([firsts[1:], [len(offsets)]]) - 1
    yield from zip(origins[firsts].tolist(), offsets[firsts].tolist(), ends[lasts].tolist(), strict=True)


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

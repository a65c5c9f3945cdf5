"""Writes a batch's files: output and errors in input order, metrics, and a manifest.

A retry writes below a prefix of its own: readers follow the batch's record, which names the earlier files until
all new ones are complete.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batchline.analytics.request_metrics import DICTIONARY_COLUMNS, count_unanswered, metrics_schema
from batchline.models.analytics import BatchReport
from batchline.models.errors import NotFound
from batchline.models.manifest import Manifest, RowGroup
from batchline.models.status import BatchStatus
from batchline.report.report_data import store_report
from batchline.report.samples import FirstFailures
from batchline.steps.context import BatchContext
from batchline.steps.merge import MergedRows, merge_rows
from batchline.steps.parts import Part
from batchline.storage.objects import layout
from batchline.storage.objects.readers import RangeReader
from batchline.storage.objects.store import ObjectStore, ObjectWriter

if TYPE_CHECKING:
    import numpy as np

COPY_BLOCK_BYTES: Final = 8 * 2**20
"""Bytes per read of a file whose lines are copied one by one."""

MAX_OPEN_READERS: Final = 4
"""The output and error files of the two sources that the rows of a retried batch alternate between."""


def write(context: BatchContext, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """Write the batch's files; those of a retry replace the earlier ones when the batch is finished."""
    store, batch, base = context.store, context.batch, context.batch.final_prefix
    context.raise_if_lost()
    if batch.generation == 0:
        prefix = layout.batch_prefix(batch.id)
    else:
        # The epoch keeps a runner that lost its lease from overwriting the files of its successor.
        prefix = layout.final_prefix(batch.id, batch.generation, f"e{context.claim.epoch}")
    keys = layout.final_keys(prefix)
    if base is None:
        # Parts are in chunk order, so that their lines are concatenated without reading them.
        store.concat([part.keys.output for part in parts if part.completed], keys.output)
        store.concat([part.keys.errors for part in parts if part.failed], keys.errors)
    with ExitStack() as stack:
        files = _FileWriter(store, keys, stack, copies_lines=base is not None)
        for block in merge_rows(store, parts, base):
            files.add(block)
    manifest = Manifest(
        batch_id=batch.id,
        generation=batch.generation,
        prefix=prefix,
        base=base,
        completed=files.completed,
        failed=files.failed,
        unanswered=files.unanswered,
        expired=sum(part.expired for part in parts),
        output_bytes=files.output_bytes,
        errors_bytes=files.errors_bytes,
        row_groups=files.row_groups,
        first_failures=files.first_failures.as_list(),
        cancelled=batch.status is BatchStatus.CANCELLING,
    )
    # Last, so that its presence implies that the files are complete.
    store.put(keys.manifest, msgspec.json.encode(manifest))
    publish_files(context, manifest, report)
    return manifest


def publish_files(context: BatchContext, manifest: Manifest, report: BatchReport) -> None:
    """Copy the files to the batch's public keys, and store the report's data with them."""
    batch_id = context.batch.id
    if manifest.prefix != layout.batch_prefix(batch_id):
        context.raise_if_lost()
        for key, target in zip(layout.final_keys(manifest.prefix), layout.published_keys(batch_id), strict=True):
            context.store.copy(key, target)
    store_report(context.store, batch_id, report)


_decode_manifest = msgspec.json.Decoder(Manifest).decode


def read_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """Return the manifest of the final files below the prefix; raises `NotFound`."""
    manifest = _decode_manifest(store.read(layout.final_keys(prefix).manifest))
    # The files may have been copied here together with a manifest that names their first prefix.
    return msgspec.structs.replace(manifest, prefix=prefix)


def find_finished_manifest(store: ObjectStore, batch_id: str, *, generation: int) -> Manifest | None:
    """Return the published manifest if it is of this generation or a later one and its files exist, else None."""
    try:
        manifest = _decode_manifest(store.read(layout.manifest_key(batch_id)))
    except NotFound:
        return None
    if manifest.batch_id != batch_id or manifest.generation < generation:
        return None
    # If the files at the manifest's own prefix are gone, their published copies serve as well.
    for prefix in dict.fromkeys((manifest.prefix, layout.batch_prefix(batch_id))):
        keys = layout.final_keys(prefix)
        with suppress(NotFound):
            is_complete = store.info(keys.requests).size_bytes and all(
                not size or store.info(key).size_bytes == size
                for key, size in ((keys.output, manifest.output_bytes), (keys.errors, manifest.errors_bytes))
            )
            if is_complete:
                return msgspec.structs.replace(manifest, prefix=prefix)
    return None


class _FileWriter:
    """Writer of the final files: always the metrics, and result lines unless parts were concatenated.

    The files are complete when the stack is closed without an error.
    """

    def __init__(
        self, store: ObjectStore, keys: layout.FinalKeys, stack: ExitStack, *, copies_lines: bool
    ) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415 - half a second that must not delay the first request

        self.completed = self.failed = self.unanswered = self.output_bytes = self.errors_bytes = 0
        self.row_groups: list[RowGroup] = []
        self.first_failures = FirstFailures()
        self._copies_lines = copies_lines
        self._open_reader = lru_cache(maxsize=MAX_OPEN_READERS)(
            lambda key: RangeReader(store, key, read_ahead_bytes=COPY_BLOCK_BYTES)
        )
        enter = stack.enter_context
        if copies_lines:
            self._output, self._errors = enter(store.writer(keys.output)), enter(store.writer(keys.errors))
        self._metrics_writer = enter(
            pq.ParquetWriter(
                _ArrowFile(enter(store.writer(keys.requests))),
                metrics_schema(),
                compression="zstd",
                use_dictionary=list(DICTIONARY_COLUMNS),
            )
        )

    def add(self, block: MergedRows) -> None:
        """Append rows."""
        import numpy as np  # noqa: PLC0415 - as above
        import pyarrow as pa  # noqa: PLC0415 - as above

        table, rows = block.table, block.table.num_rows
        if not rows:
            return
        ok = table["ok"].to_numpy(zero_copy_only=False)
        offsets, lengths = table["offset"].to_numpy(), table["length"].to_numpy()
        if self._copies_lines:
            self._copy_lines(block, ok, offsets, lengths)
        first_line = int(table["line"][0].as_py())
        self.row_groups.append(RowGroup(first_row=self.completed + self.failed, rows=rows, first_line=first_line))
        # Rows count their lines in a part or an earlier file; the table needs positions in the new files.
        file_offsets = np.where(
            ok,
            self.output_bytes + np.cumsum(lengths * ok) - lengths,
            self.errors_bytes + np.cumsum(lengths * ~ok) - lengths,
        )
        column_index = table.schema.get_field_index("offset")
        table = table.set_column(column_index, "offset", pa.array(file_offsets)).cast(metrics_schema())
        self._metrics_writer.write_table(table, rows)
        self.first_failures.add(table)
        self.completed += int(ok.sum())
        self.failed += int((~ok).sum())
        self.unanswered += count_unanswered(table)
        self.output_bytes += int(lengths[ok].sum())
        self.errors_bytes += int(lengths[~ok].sum())

    def _copy_lines(self, block: MergedRows, ok: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        for is_ok, file in ((True, self._output), (False, self._errors)):
            rows = ok == is_ok
            for source_number, start, end in _contiguous_ranges(
                block.source_numbers[rows], offsets[rows], lengths[rows]
            ):
                source = block.sources[source_number]
                reader = self._open_reader(source.output if is_ok else source.errors)
                for offset in range(start, end, COPY_BLOCK_BYTES):
                    file.write(reader.read(offset, min(end, offset + COPY_BLOCK_BYTES)))


def _contiguous_ranges(
    source_numbers: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """Yield ranges of adjacent lines of one source: its number, first byte, end (exclusive)."""
    import numpy as np  # noqa: PLC0415 - as above

    if not len(offsets):
        return
    ends = offsets + lengths
    breaks = (source_numbers[1:] != source_numbers[:-1]) | (offsets[1:] != ends[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lasts = np.concatenate([firsts[1:], [len(offsets)]]) - 1
    yield from zip(source_numbers[firsts].tolist(), offsets[firsts].tolist(), ends[lasts].tolist(), strict=True)


class _ArrowFile(io.RawIOBase):
    """Adapter of a storage writer to the file object that pyarrow expects."""

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

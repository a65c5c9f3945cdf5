"""Reduces the metrics of a batch's requests to analytics and a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from batchline.analytics.failure_messages import MessageCounts
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.lines import read_error_message
from batchline.report.samples import TAIL_BYTES
from batchline.steps.context import BatchContext
from batchline.steps.merge import MergedRows, merge_rows
from batchline.steps.parts import Part
from batchline.storage.objects import layout
from batchline.storage.objects.readers import RangeReader
from batchline.storage.objects.store import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa


def aggregate(
    context: BatchContext, parts: Sequence[Part], *, base: str | None = None
) -> tuple[BatchAnalytics, BatchReport]:
    """Compute analytics and report over the parts and the final files below `base`.

    By default, `base` is the prefix of the earlier generation's files, if there is one.
    """
    from batchline.analytics.totals import compute_analytics  # noqa: PLC0415 - loads pandas

    message_counts = MessageCounts()
    for part in parts:
        message_counts.add_stored(part.messages)
    row_blocks = merge_rows(context.store, parts, base or context.batch.final_prefix)
    tables = _count_earlier_messages(context.store, row_blocks, message_counts)
    analytics, report = compute_analytics(tables, prices=context.settings.prices)
    return analytics, report.model_copy(update={"failure_messages": message_counts.most_frequent()})


def _count_earlier_messages(
    store: ObjectStore, row_blocks: Iterable[MergedRows], message_counts: MessageCounts
) -> Iterator[pa.Table]:
    """Yield the tables; count the messages of an earlier generation's failures, which are in its error file."""
    import pyarrow as pa  # noqa: PLC0415 - half a second that must not delay the first request

    reader: RangeReader | None = None
    for block in row_blocks:
        yield block.table
        for number, source in enumerate(block.sources):
            if not isinstance(source, layout.FinalKeys):
                continue
            is_kept_failure = (block.source_numbers == number) & ~block.table["ok"].to_numpy()
            if not is_kept_failure.any():
                continue
            reader = reader or RangeReader(store, source.errors)
            failures = block.table.select(["error_code", "offset", "length"]).filter(pa.array(is_kept_failure))
            for code, offset, length in zip(*(column.to_pylist() for column in failures), strict=True):
                end = offset + length
                message_counts.add(code, read_error_message(reader.read(max(offset, end - TAIL_BYTES), end)))

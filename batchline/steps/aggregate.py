"""Reduces the metrics of a batch's requests to analytics and a report."""

from collections.abc import Sequence

from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.steps.context import BatchContext
from batchline.steps.merge import merge_rows
from batchline.steps.parts import Part


def aggregate(
    context: BatchContext, parts: Sequence[Part], *, base: str | None = None
) -> tuple[BatchAnalytics, BatchReport]:
    """Compute analytics and report over the parts and the final files below `base`.

    By default, `base` is the prefix of the earlier generation's files, if there is one.
    """
    from batchline.analytics.totals import compute_analytics  # noqa: PLC0415 - loads pandas

    row_blocks = merge_rows(context.store, parts, base or context.batch.final_prefix)
    return compute_analytics((block.table for block in row_blocks), prices=context.settings.prices)

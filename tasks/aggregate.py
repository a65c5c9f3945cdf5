"""The third step of a batch: reduces the parts to analytics and a report."""

from collections.abc import Sequence

from batchline.engine.lease import BatchLease
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.steps.aggregate import aggregate as aggregate_step
from batchline.steps.parts import Part
from batchline.tasks.retries import step


@step(name="aggregate", task_run_name="aggregate")
def aggregate(hold: BatchLease, parts: Sequence[Part]) -> tuple[BatchAnalytics, BatchReport]:
    """Return the batch's usage, speed and failures."""
    return aggregate_step(hold, parts)

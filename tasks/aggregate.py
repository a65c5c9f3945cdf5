"""The third step: reduce the parts to analytics and a report."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.steps import lifecycle
from batchline.steps.hold import BatchHold
from batchline.steps.parts import Part
from batchline.tasks.faults import RETRIES, RETRY_DELAYS_S, is_storage_fault


@task(
    name="aggregate",
    task_run_name="aggregate",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_storage_fault,
)
def aggregate(hold: BatchHold, parts: Sequence[Part]) -> tuple[BatchAnalytics, BatchReport]:
    """What the batch used, how fast it was, and what failed."""
    return lifecycle.measure(hold, parts)

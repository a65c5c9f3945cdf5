"""The last step: join the parts into the output and error files."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from batchline.models.analytics import BatchReport
from batchline.steps import lifecycle
from batchline.steps.hold import BatchHold
from batchline.steps.parts import Part
from batchline.steps.write import Manifest
from batchline.tasks.faults import RETRIES, RETRY_DELAYS_S, is_storage_fault


@task(
    name="write",
    task_run_name="write",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_storage_fault,
)
def write(hold: BatchHold, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """The batch's files, each there whole or not at all."""
    return lifecycle.write(hold, parts, report)

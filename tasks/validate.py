"""The first step: check the input file and cut it into chunks."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from batchline.models.plan import Plan
from batchline.steps.hold import BatchHold
from batchline.steps.recovery import validate_or_recover
from batchline.tasks.faults import RETRIES, RETRY_DELAYS_S, is_storage_fault


@task(
    name="validate",
    task_run_name="validate",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_storage_fault,
)
def validate(hold: BatchHold) -> Plan | None:
    """The batch's plan, made now or by an earlier run; none where the batch is over."""
    return validate_or_recover(hold)

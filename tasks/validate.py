"""The first step of a batch: validates the input file and divides it into chunks."""

from typing import cast

from batchline.engine.lease import BatchLease
from batchline.engine.recovery import validate_or_recover
from batchline.models.plan import Plan
from batchline.models.status import BatchStatus
from batchline.orchestration.final_state import final_state, outcome_message
from batchline.tasks.retries import step


@step(name="validate", task_run_name="validate")
def validate(hold: BatchLease) -> Plan | None:
    """Return the batch's plan, made now or by an earlier run, or None if the batch was cancelled or has expired.

    If the input does not validate, the task run ends *Failed*, and the call returns that state.
    """
    plan = validate_or_recover(hold)
    # FAILED without `in_progress_at`: the input is invalid. Prefect makes a returned state that of the task run.
    if hold.batch.status is BatchStatus.FAILED and hold.batch.in_progress_at is None:
        return cast("Plan", final_state(hold.batch, outcome_message(hold.batch, None)))
    return plan

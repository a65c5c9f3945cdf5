"""Which batch to go on with after a flow run has crashed."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from batchline.models.errors import Conflict, NotFound
from batchline.steps.engine import Engine
from batchline.storage.records import BatchRecord

MOST_IN_A_ROW: Final = 10
"""Runs that crash one after another before nobody is started any more: what kills them would kill the next."""


def batch_of_crash(engine: Engine, run_id: str) -> BatchRecord:
    """The batch that the crashed flow run had; its id may be that of an event's resource, `prefect.flow-run.…`.

    Raises `NotFound` where it had none, and `Conflict` after too many runs that crashed in a row.
    """
    run_id = run_id.removeprefix("prefect.flow-run.")
    batch = engine.records.last_batch_of_flow_run(run_id)
    if batch is None:
        raise NotFound(f"flow run {run_id} crashed before it had a batch; start it again with its parameters")
    crashes = _crashes_in_a_row(run_id)
    if crashes > MOST_IN_A_ROW:
        raise Conflict(
            f"batch {batch.id}: {crashes} runs crashed one after another; see why, then go on with: "
            f"batchline run --resume {batch.id}"
        )
    return batch


def _crashes_in_a_row(run_id: str) -> int:
    """How many crashes led to this one: each run that goes on after a crash names the run that crashed."""
    crashes, before = 0, UUID(run_id)
    with get_client(sync_client=True) as client:
        while crashes <= MOST_IN_A_ROW:
            crashes += 1
            try:
                named = client.read_flow_run(before).parameters.get("crashed_run")
            except ObjectNotFound:
                break
            if named is None:
                break
            before = UUID(named.removeprefix("prefect.flow-run."))
    return crashes

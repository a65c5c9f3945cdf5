"""Which batch to go on with after a flow run has crashed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from batchline.engine.services import Services
from batchline.models.errors import Conflict, NotFound
from batchline.orchestration.run_states import was_suspended
from batchline.storage.records.store import BatchRecord

MAX_CONSECUTIVE_CRASHES: Final = 10
"""Runs that crash one after another before nobody is started any more: what kills them would kill the next."""


def batch_of_crashed_run(services: Services, run_id: str) -> BatchRecord:
    """The batch that the crashed flow run had; its id may be that of an event's resource, `prefect.flow-run.…`.

    A run that died before it took the batch was started for it, or for a run that had it. Raises `NotFound` if
    there was none, and `Conflict` after too many runs that crashed in a row, or for a run that was suspended.
    """
    crashes = list(_consecutive_crashes(run_id))
    batch = next(
        (candidate for crash in crashes if (candidate := _batch_of_run(services, *crash)) is not None), None
    )
    if batch is None:
        raise NotFound(
            f"flow run {crashes[0][0]} crashed before it had a batch; start it again with its parameters"
        )
    if _was_suspended(crashes[0][0]):
        raise Conflict(
            f"batch {batch.id}: flow run {crashes[0][0]} was suspended before it crashed, so it stays stopped; "
            f"to continue: batchline run --resume {batch.id}"
        )
    if len(crashes) > MAX_CONSECUTIVE_CRASHES:
        raise Conflict(
            f"batch {batch.id}: {len(crashes)} runs crashed one after another; see why, then go on with: "
            f"batchline run --resume {batch.id}"
        )
    return batch


def _was_suspended(run_id: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            return was_suspended(client, UUID(run_id))
        except (ObjectNotFound, ValueError):  # the run was deleted since
            return False


def _batch_of_run(services: Services, run_id: str, parameters: dict[str, Any]) -> BatchRecord | None:
    batch_id = parameters.get("batch_id")
    return (
        services.records.get_batch(batch_id) if batch_id else services.records.find_last_batch_of_flow_run(run_id)
    )


def _consecutive_crashes(run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and parameters of the run and of those before it; one that goes on after a crash names what crashed."""
    next_run: str | None = run_id
    with get_client(sync_client=True) as client:
        for _ in range(MAX_CONSECUTIVE_CRASHES + 1):
            if next_run is None:
                return
            run_id = next_run.removeprefix("prefect.flow-run.")
            try:
                parameters = client.read_flow_run(UUID(run_id)).parameters
            except (ObjectNotFound, ValueError):  # it was deleted since, or never was one
                parameters = {}
            yield run_id, parameters
            next_run = parameters.get("crashed_run")

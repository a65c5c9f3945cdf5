"""Finds the batch to continue after a flow run has crashed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from batchline.engine.services import Services
from batchline.models.errors import Conflict, NotFound
from batchline.orchestration.requested_actions import was_suspended
from batchline.storage.records.store import BatchRecord

MAX_CONSECUTIVE_CRASHES: Final = 10
"""Consecutive crashes after which no new run is started, as it would probably crash too."""


def batch_of_crashed_run(services: Services, run_id: str) -> BatchRecord:
    """Return the batch of a crashed flow run; `run_id` may be an event's resource id, `prefect.flow-run.…`.

    If the run crashed before it took a batch, it is the one that the run was started for. Raises `NotFound` if
    there is none, and `Conflict` after too many consecutive crashes or for a suspended run.
    """
    crashes = list(_consecutive_crashes(run_id))
    batch, is_suspended = None, False
    for crashed_id, parameters in crashes:
        batch_id = parameters.get("batch_id")
        batch = batch or (
            services.records.get_batch(batch_id)
            if batch_id
            else services.records.find_last_batch_of_flow_run(crashed_id)
        )
    if batch is None:
        raise NotFound(
            f"flow run {crashes[0][0]} crashed before it had a batch; start it again with the same parameters"
        )
    with get_client(sync_client=True) as client, suppress(ObjectNotFound, ValueError):  # if the run was deleted
        is_suspended = was_suspended(client, UUID(crashes[0][0]))
    if is_suspended:
        raise Conflict(
            f"batch {batch.id}: flow run {crashes[0][0]} was suspended before it crashed, so it stays stopped; "
            f"to continue: batchline run --resume {batch.id}"
        )
    if len(crashes) > MAX_CONSECUTIVE_CRASHES:
        raise Conflict(
            f"batch {batch.id}: {len(crashes)} runs crashed one after another; find the cause in their logs, then "
            f"continue with: batchline run --resume {batch.id}"
        )
    return batch


def _consecutive_crashes(run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and parameters of the run and of its predecessors, which the parameter `crashed_run` links."""
    next_run: str | None = run_id
    with get_client(sync_client=True) as client:
        for _ in range(MAX_CONSECUTIVE_CRASHES + 1):
            if next_run is None:
                return
            run_id = next_run.removeprefix("prefect.flow-run.")
            try:
                parameters = client.read_flow_run(UUID(run_id)).parameters
            except (ObjectNotFound, ValueError):  # it was deleted since, or the id is invalid
                parameters = {}
            yield run_id, parameters
            next_run = parameters.get("crashed_run")

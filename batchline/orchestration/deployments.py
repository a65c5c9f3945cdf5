"""Starts batches as runs of the deployment that the settings name."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from batchline.engine.services import Services
from batchline.models.errors import Interrupted
from batchline.orchestration.events import emit_batch_event
from batchline.orchestration.final_state import run_name
from batchline.orchestration.prefect_errors import interrupted

RUN_TAG: Final = "batchline"
"""The tag of runs that send heartbeats every `HEARTBEAT_S`, so that their crash is detected soon."""


def start_deployment_run(
    services: Services, batch_id: str, *, deployment: str | None = None, after_crash: bool = False
) -> str:
    """Create a deployment run for the batch, unless its last run still waits for a worker; return the run's id.

    `deployment` defaults to that of the settings. A run that is started `after_crash` ends at once after too many
    consecutive crashes. Raises `NotFound` for an unknown batch, and `Interrupted` if Prefect fails; the batch then
    stays unchanged and can be started again.
    """
    batch = services.records.get_batch(batch_id)
    name = deployment or services.settings.deployment
    not_started = f"batch {batch.id} is recorded but not started: "
    with interrupted(not_started), get_client(sync_client=True) as client:
        if batch.last_flow_run_id is not None and _is_pending(client, batch.last_flow_run_id):
            return batch.last_flow_run_id
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound as error:
            raise Interrupted(
                f"{not_started}there is no deployment {name}; make it by `prefect deploy --all` in the checkout, "
                "or name another in BATCHLINE_DEPLOYMENT"
            ) from error
        run = client.create_flow_run_from_deployment(
            found.id,
            parameters={"crashed_run": batch.last_flow_run_id} if after_crash else {"batch_id": batch.id},
            name=run_name(batch),
            # The same for all processes that start the batch after the same run: Prefect then creates one run.
            idempotency_key=f"{batch.id}-g{batch.generation}-{batch.last_flow_run_id or 'first'}",
        )
    services.records.record_flow_run(batch.id, str(run.id))
    if batch.epoch == 0 and batch.last_flow_run_id is None:
        emit_batch_event("created", batch)
    return str(run.id)


def _is_pending(client: SyncPrefectClient, run_id: str) -> bool:
    """Return True if the flow run has not started yet."""
    try:
        state = client.read_flow_run(UUID(run_id)).state
    except ObjectNotFound:
        return False
    return state is not None and (state.is_scheduled() or state.is_pending())

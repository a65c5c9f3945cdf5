"""Starts batches as runs of the deployment that the settings name."""

from __future__ import annotations

from typing import Final

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from batchline.engine.services import Services
from batchline.models.errors import Interrupted
from batchline.orchestration.events import emit_batch_event
from batchline.orchestration.final_state import run_name
from batchline.orchestration.prefect_errors import interrupted
from batchline.orchestration.requested_actions import read_flow_run

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
        last_run = None if batch.last_flow_run_id is None else read_flow_run(client, batch.last_flow_run_id)
        if (
            last_run is not None
            and last_run.state is not None
            and (last_run.state.is_scheduled() or last_run.state.is_pending())
        ):
            return str(last_run.id)
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound as error:
            raise Interrupted(
                f"{not_started}there is no deployment {name}; create it with `prefect deploy --all` in the "
                "checkout, or name another in BATCHLINE_DEPLOYMENT"
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

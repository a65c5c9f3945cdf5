"""Creates automations that start one batch when another completes."""

from __future__ import annotations

from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import SetupResult, batch_event_trigger, prefect_client, upsert_automation


def chain_batches(first_file: str, next_uri: str, *, deployment: str, endpoint: str, window: str) -> SetupResult:
    """Create an automation that starts a batch of `next_uri` each time a batch of `first_file` completes.

    Safe to repeat. Raises `InvalidInput` if the server has no such deployment of process-batch.
    """
    parameters = {"input_uri": next_uri, "endpoint": endpoint, "completion_window": window}
    with prefect_client() as client:
        try:
            deployment_id = client.read_deployment_by_name(deployment).id
        except ObjectNotFound:
            raise InvalidInput(
                f"there is no deployment {deployment}; create it with `prefect deploy --all` or "
                "`batchline prefect serve`, or name another in BATCHLINE_DEPLOYMENT"
            ) from None
        automation = AutomationCore(
            name=f"batchline: after {first_file}, {next_uri}",
            description=f"Each time {first_file} completes. Made by `batchline prefect chain`.",
            trigger=batch_event_trigger("completed", file=first_file),
            actions=[RunDeployment(deployment_id=deployment_id, parameters=parameters)],
        )
        return upsert_automation(client, automation)

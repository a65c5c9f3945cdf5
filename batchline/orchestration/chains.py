"""Has one batch start when another completes."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import Made, connected, on_batches, put


def chain(first: str, then: str, *, deployment: str, endpoint: str, window: str) -> Made:
    """Each time a batch of a file named `first` completes, start one of the file at the address `then`.

    Safe to repeat. Raises `InvalidInput` where the server has no such deployment of process-batch.
    """
    with connected() as client:
        wanted = AutomationCore(
            name=f"batchline: after {first}, {then}",
            description=f"Each time {first} completes. Made by `batchline prefect chain`.",
            trigger=on_batches("completed", file=first),
            actions=[
                RunDeployment(
                    deployment_id=_deployment(client, deployment),
                    parameters={"input_uri": then, "endpoint": endpoint, "completion_window": window},
                )
            ],
        )
        return put(client, wanted)


def _deployment(client: SyncPrefectClient, name: str) -> UUID:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        raise InvalidInput(
            f"there is no deployment {name}; make it by `prefect deploy --all` or `batchline prefect serve`, or "
            "name another in BATCHLINE_DEPLOYMENT"
        ) from None

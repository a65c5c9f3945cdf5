"""Creates what the deployments need on a Prefect server besides `prefect deploy`, and chains of batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import (
    SetupResult,
    batch_event_trigger,
    crash_on_missed_heartbeats,
    prefect_client,
    upsert_automation,
)
from batchline.orchestration.blocks import BLOCK_TYPES
from batchline.orchestration.deployments import RUN_TAG
from batchline.orchestration.events import HEARTBEAT_S
from batchline.orchestration.notifications import notifications
from batchline.orchestration.prefect_errors import log_failures

DEFAULT_HEARTBEAT_S: Final = 180
"""Seconds between heartbeats of runs started elsewhere: Prefect's default."""

MISSED_HEARTBEATS: Final = 3
LEASE_STORAGE_SETTING: Final = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
FILE_STORAGE: Final = "prefect.server.concurrency.lease_storage.filesystem"
MEMORY_STORAGE: Final = "prefect.server.concurrency.lease_storage.memory"


def set_up_server(
    *,
    work_pool: str = "batchline",
    crash_after_s: int = MISSED_HEARTBEATS * HEARTBEAT_S,
    notify: Sequence[str] = (),
) -> Iterator[SetupResult]:
    """Create or update the work pool, the block types and the automations, and yield each.

    Safe to repeat. A run tagged `RUN_TAG` counts as crashed after `crash_after_s` seconds without a heartbeat.
    `notify` has URLs or blocks (`type/name`) to notify of ended and late batches and files in quarantine. Raises
    `InvalidInput` for a target that cannot be notified, and `Interrupted` if the server fails.
    """
    if crash_after_s <= HEARTBEAT_S:
        raise InvalidInput(
            f"crash-after is {crash_after_s} s; runs send a heartbeat every {HEARTBEAT_S} s, so write more",
            param="crash_after",
        )
    with prefect_client() as client:
        try:
            client.read_work_pool(work_pool)
            yield SetupResult(what="work pool", name=work_pool, outcome="was there")
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=work_pool, type="process"))
            yield SetupResult(what="work pool", name=work_pool, outcome="made")
        for block in BLOCK_TYPES:
            block.register_type_and_schema()
            yield SetupResult(what="block type", name=str(block.get_block_type_slug()), outcome="renewed")
        our_tag = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{RUN_TAG}"}
        automation = crash_on_missed_heartbeats("of our deployments", our_tag, crash_after_s)
        yield upsert_automation(client, automation)
        batch_flow = {"prefect.resource.role": "flow", "prefect.resource.name": "process-batch"}
        within_s = max(crash_after_s, MISSED_HEARTBEATS * DEFAULT_HEARTBEAT_S)
        automation = crash_on_missed_heartbeats("of process-batch, started anywhere,", batch_flow, within_s)
        yield upsert_automation(client, automation)
        for automation in notifications(client, notify) if notify else ():
            yield upsert_automation(client, automation)


def find_server_warning() -> str | None:
    """Return a warning about the configured server, or None; raises `Interrupted` if it fails."""
    with prefect_client() as client:
        return lease_storage_warning(client)


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


def warn_of_memory_leases(logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
    """Log a warning if the configured permanent server loses leases at a restart."""
    if get_current_settings().api.url is None:
        return
    with get_client(sync_client=True) as client:
        warning = lease_storage_warning(client)
    if warning is not None:
        logger.warning("%s", warning)


def lease_storage_warning(client: SyncPrefectClient) -> str | None:
    """Return a warning for a server that keeps leases in memory; None for any other server."""
    storage = None
    with log_failures("the server's lease storage is unknown", logging.DEBUG):  # Prefect Cloud has no such page
        settings = client.request("GET", "/admin/settings").json()
        storage = settings["server"]["concurrency"]["lease_storage"]
    if storage != MEMORY_STORAGE:
        return None
    return (
        "this Prefect server keeps the leases of runs and upstreams in memory: when it restarts, it ends runs and "
        f"slots of upstreams stay taken; start it with {LEASE_STORAGE_SETTING}={FILE_STORAGE}"
    )

"""Warns if a Prefect server keeps the leases of concurrency slots in memory, where a restart loses them."""

from __future__ import annotations

import logging
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from batchline.orchestration.prefect_errors import log_failures

LEASE_STORAGE_SETTING: Final = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
FILE_STORAGE: Final = "prefect.server.concurrency.lease_storage.filesystem"
MEMORY_STORAGE: Final = "prefect.server.concurrency.lease_storage.memory"


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

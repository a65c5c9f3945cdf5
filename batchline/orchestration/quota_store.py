"""Stores quota leases in Prefect's global concurrency limits, to share upstream limits among all processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from batchline.engine.services import Services
from batchline.models.addresses import is_loopback
from batchline.models.upstreams import Upstream
from batchline.upstream.quota.store import LimitState, QuotaStoreError

PAGE_SIZE: Final = 200
"""Limits per page of Prefect's list."""

NAME_PREFIX: Final = "batchline-"
"""The prefix of the names of our limits."""

CLIENT_TIMEOUT_S: Final = 10.0
MAX_LIMIT: Final = 2**31 - 1
NO_FREE_SLOTS_STATUSES: Final = (422, 423)
LEASE_EXPIRED_STATUS: Final = 410


def share_quotas(services: Services) -> None:
    """Let the dispatcher share its upstreams' limits through the configured Prefect server.

    Does nothing if the settings disable it, or without a permanent server: no other process uses the temporary one
    that Prefect starts for a single program. Safe to repeat.
    """
    if services.settings.share_budgets and get_current_settings().api.url:
        services.dispatcher.share_quota(PrefectQuotaStore)


class PrefectQuotaStore:
    """A `QuotaStore` in Prefect; a context manager for use by one thread."""

    def __init__(self) -> None:
        self._client = get_client(sync_client=True, httpx_settings={"timeout": CLIENT_TIMEOUT_S})
        # Few retries: a failed call is repeated at the next poll, and leases last for minutes.
        self._settings = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1})

    def __enter__(self) -> Self:
        self._settings.__enter__()
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(None, None, None)
        self._settings.__exit__(None, None, None)

    def limit_name(self, upstream: Upstream, kind: str) -> str:
        """Return `batchline-<upstream>-<kind>`; an upstream without a name is identified by its address."""
        if upstream.name != "default":
            return f"{NAME_PREFIX}{upstream.name}-{kind}"
        parts = urlsplit(upstream.base_url)
        # A loopback address is another server on each machine.
        host = socket.gethostname() if is_loopback(parts.hostname or "") else parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{NAME_PREFIX}{host}-{port}".replace(":", ".").lower() + f"-{kind}"

    def read_limits(self, names: list[str]) -> dict[str, LimitState]:
        """Return the states of the named limits that exist, by one request if the server has few limits."""
        with _translate_errors():
            listed = self._client.read_global_concurrency_limits(limit=PAGE_SIZE)
            limits = {response.name: response for response in listed if response.name in names}
            if len(listed) == PAGE_SIZE:  # a missing limit may be on a later page
                for name in set(names) - limits.keys():
                    with suppress(ObjectNotFound):
                        limits[name] = self._client.read_global_concurrency_limit_by_name(name)
        # A rate limit, whose slots decay, is not in force here.
        return {
            name: LimitState(
                limit.limit, limit.active_slots, limit.active and limit.slot_decay_per_second == 0, str(limit.id)
            )
            for name, limit in limits.items()
        }

    def create_limit(self, name: str, limit: int) -> None:
        """Create a limit unless it exists."""
        new_limit = GlobalConcurrencyLimitCreate(name=name, limit=min(limit, MAX_LIMIT))
        with _translate_errors(), suppress(ObjectAlreadyExists):
            self._client.create_global_concurrency_limit(new_limit)

    def acquire(self, name: str, slots: int, lease_s: float) -> str | None:
        """Lease slots for `lease_s` seconds; return the lease's id, or None if too few slots are free."""
        with _translate_errors():
            try:
                response = self._client.increment_concurrency_slots_with_lease(
                    names=[name], slots=slots, mode="concurrency", lease_duration=lease_s
                ).json()
            except PrefectHTTPStatusError as error:
                if error.response.status_code in NO_FREE_SLOTS_STATUSES:
                    return None
                raise
            lease_id = str(response["lease_id"])
            if response["limits"]:
                return lease_id
            # The limit was deleted: Prefect then grants any number of slots, of no limit.
            self._client.release_concurrency_slots_with_lease(UUID(lease_id))
            return None

    def renew(self, lease_id: str, lease_s: float) -> bool:
        """Renew a lease; return False if it is unknown or expired."""
        with _translate_errors():
            try:
                self._client.renew_concurrency_lease(UUID(lease_id), lease_s)
            except PrefectHTTPStatusError as error:
                if error.response.status_code == LEASE_EXPIRED_STATUS:
                    return False
                raise
            return True

    def release(self, lease_id: str) -> None:
        """Release the slots of a lease; ignores an unknown lease."""
        with _translate_errors():
            self._client.release_concurrency_slots_with_lease(UUID(lease_id))

    def release_slots(self, name: str, slots: int) -> None:
        """Release slots whose lease is unknown to the server."""
        with _translate_errors():
            self._client.release_concurrency_slots(names=[name], slots=slots, occupancy_seconds=1.0)

    def report_alive(self, name: str) -> None:
        """Update the limit without changes, which renews its time of last update."""
        with _translate_errors():
            self._client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(name=name))

    def change_command(self, name: str, limit: int | None) -> str:
        """Return the command to change the limit, with a placeholder if `limit` is None."""
        return f"prefect gcl update {name} --limit {'N' if limit is None else limit}"


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Prefect's client raises many kinds
        raise QuotaStoreError(f"Prefect fails: {type(error).__name__}: {error}") from error

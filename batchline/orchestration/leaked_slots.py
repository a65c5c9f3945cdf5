"""Finds and releases slots of upstream limits in Prefect that no process holds any more.

A Prefect server that keeps leases in memory loses them when it restarts, but keeps the slots taken under them.
Slots of a process that dies before it notices stay taken forever. Each working process updates the limit on
processes once a minute; if there was no update for some minutes, no process holds any slots.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from batchline.orchestration.automations import prefect_client
from batchline.orchestration.quota_store import NAME_PREFIX, PAGE_SIZE
from batchline.upstream.quota.upstream_quota import PROCESSES

IDLE_AFTER_S: Final = 300.0
"""Five updates of a working process, and longer than the leases of a killed process last."""

LIMIT_KINDS: Final = (PROCESSES, "in-flight", "requests-per-minute", "tokens-per-minute")


class LeakedSlots(msgspec.Struct, frozen=True):
    """Slots of a limit that no process holds."""

    name: str
    slots: int


def find_leaked_slots() -> Iterator[LeakedSlots]:
    """Yield the limits with taken slots whose upstream no process has used for `IDLE_AFTER_S`.

    Raises `Interrupted` if Prefect fails.
    """
    limits_by_upstream: dict[str, dict[str, GlobalConcurrencyLimitResponse]] = defaultdict(dict)
    with prefect_client() as client:
        offset = 0
        while page := client.read_global_concurrency_limits(limit=PAGE_SIZE, offset=offset):
            offset += len(page)
            for limit in page:
                kind = next((kind for kind in LIMIT_KINDS if limit.name.endswith(f"-{kind}")), None)
                if limit.name.startswith(NAME_PREFIX) and kind is not None:
                    limits_by_upstream[limit.name.removesuffix(kind)][kind] = limit
    idle_since = time.time() - IDLE_AFTER_S
    for limits in limits_by_upstream.values():
        is_idle = all(limit.updated and limit.updated.timestamp() < idle_since for limit in limits.values())
        if PROCESSES in limits and is_idle:
            yield from (
                LeakedSlots(limit.name, limit.active_slots) for limit in limits.values() if limit.active_slots
            )


def release_leaked_slots(leaked: LeakedSlots) -> None:
    """Release the slots; raises `Interrupted` if Prefect fails."""
    with prefect_client() as client:
        client.release_concurrency_slots(names=[leaked.name], slots=leaked.slots, occupancy_seconds=1.0)

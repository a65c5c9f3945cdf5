"""Finds slots of upstreams' limits in Prefect that no process holds any more, and frees them.

A Prefect server that keeps leases in memory forgets them when it restarts, but not the slots that were taken under
them. The slots of a process that dies before it has noticed stay taken for good. A process that has work reports
itself with the limit on processes once a minute; if none did so for some minutes, nobody holds anything.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from batchline.orchestration.automations import connected
from batchline.orchestration.budgets import PAGE, PREFIX
from batchline.upstream.lane_share import PROCESSES

QUIET_S: Final = 300.0
"""Five reports of a process that works, and longer than what a killed process held can lapse."""

KINDS: Final = (PROCESSES, "in-flight", "requests-per-minute", "tokens-per-minute")


class Leak(msgspec.Struct, frozen=True):
    """Slots of the limit of that name that nobody holds."""

    name: str
    slots: int


def leaked() -> Iterator[Leak]:
    """Yield the limits whose upstream no process has used lately, and that have slots taken all the same.

    Raises `Interrupted` if Prefect fails.
    """
    groups: dict[str, dict[str, GlobalConcurrencyLimitResponse]] = defaultdict(dict)
    with connected() as client:
        for limit in _limits(client):
            kind = next((kind for kind in KINDS if limit.name.endswith(f"-{kind}")), None)
            if limit.name.startswith(PREFIX) and kind is not None:
                groups[limit.name.removesuffix(kind)][kind] = limit
    for limits in groups.values():
        if PROCESSES in limits and all(_is_quiet(limit) for limit in limits.values()):
            yield from (Leak(limit.name, limit.active_slots) for limit in limits.values() if limit.active_slots)


def free(leak: Leak) -> None:
    """Give the slots back; raises `Interrupted` if Prefect fails."""
    with connected() as client:
        client.release_concurrency_slots(names=[leak.name], slots=leak.slots, occupancy_seconds=1.0)


def _limits(client: SyncPrefectClient) -> Iterator[GlobalConcurrencyLimitResponse]:
    offset = 0
    while page := client.read_global_concurrency_limits(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _is_quiet(limit: GlobalConcurrencyLimitResponse) -> bool:
    return limit.updated is not None and time.time() - limit.updated.timestamp() > QUIET_S

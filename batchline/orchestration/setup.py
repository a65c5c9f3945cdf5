"""Makes what a Prefect server needs for our deployments and does not get from `prefect deploy`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import Made, connected, put, without_heartbeat
from batchline.orchestration.blocks import BLOCKS
from batchline.orchestration.deployments import TAG
from batchline.orchestration.events import HEARTBEAT_S
from batchline.orchestration.lease_storage import lease_storage_warning
from batchline.orchestration.notices import file_notices, notices

DEFAULT_HEARTBEAT_S: Final = 180
"""Between those of runs that are started elsewhere: Prefect's own default."""

MISSED: Final = 3


def set_up(
    *, work_pool: str = "batchline", crash_after_s: int = MISSED * HEARTBEAT_S, notify: Sequence[str] = ()
) -> Iterator[Made]:
    """Make the work pool, the types of blocks and the automations that are missing, and yield each.

    Safe to repeat. `crash_after_s` is how long a run that is tagged batchline may send no heartbeat before it
    counts as crashed. `notify` are URLs, or types and names of blocks, that are notified of the end of each batch,
    of batches that will be late, and of files in quarantine. Raises `InvalidInput` for what cannot be notified,
    and `Interrupted` where the server fails.
    """
    if crash_after_s <= HEARTBEAT_S:
        raise InvalidInput(
            f"crash-after is {crash_after_s} s; runs send a heartbeat every {HEARTBEAT_S} s, so write more",
            param="crash_after",
        )
    with connected() as client:
        yield _work_pool(client, work_pool)
        for block in BLOCKS:
            block.register_type_and_schema()
            yield Made(what="block type", name=str(block.get_block_type_slug()), outcome="renewed")
        for automation in _crashes(crash_after_s):
            yield put(client, automation)
        if notify:
            yield put(client, notices(client, notify))
            yield put(client, file_notices(client, notify))


def check_server() -> str | None:
    """Return what to change on the configured server, if there is something; raises `Interrupted` if it fails."""
    with connected() as client:
        return lease_storage_warning(client)


def _work_pool(client: SyncPrefectClient, name: str) -> Made:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return Made(what="work pool", name=name, outcome="made")
    return Made(what="work pool", name=name, outcome="was there")


def _crashes(crash_after_s: int) -> Iterator[AutomationCore]:
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    yield without_heartbeat("of our deployments", ours, crash_after_s)
    all_runs = {"prefect.resource.role": "flow", "prefect.resource.name": "process-batch"}
    yield without_heartbeat(
        "of process-batch, started anywhere,", all_runs, max(crash_after_s, MISSED * DEFAULT_HEARTBEAT_S)
    )

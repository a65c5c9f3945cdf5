"""Whether a batch needs another run of the deployment, by what Prefect knows of the last one."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from batchline.models.errors import Interrupted, InvalidInput
from batchline.models.status import BatchStatus
from batchline.orchestration.refusals import words_of
from batchline.storage.records import BatchRecord

STARTS_WITHIN_S = 300.0
"""How long a run may be Pending or Running and not take the batch's lease; then it is taken for dead."""


def check_server() -> None:
    """Raise `InvalidInput` where no Prefect server is configured: a temporary one would have no workers."""
    if get_current_settings().api.url is None:
        raise InvalidInput(
            "BATCHLINE_SERVE_VIA is deployment, and no Prefect server is configured: set PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api",
            param="serve_via",
        )


def needs_run(batch: BatchRecord, *, now: float) -> bool:
    """Whether a run is to be started for a batch that is not over and that no runner holds.

    Not while its last run waits for a worker or is about to begin; nor where somebody cancelled that in Prefect
    before it began, until the batch's window closes. Raises `Interrupted` where Prefect does not answer.
    """
    if batch.last_flow_run_id is None:
        return True
    state = _state(batch.last_flow_run_id)
    if state is None:
        return True
    if state.is_cancelled():
        return batch.status is BatchStatus.CANCELLING or now > batch.expires_at
    if state.is_pending() or state.is_running():
        return batch.lease_owner is not None or now - state.timestamp.timestamp() > STARTS_WITHIN_S
    return state.is_final()


def _state(run_id: str) -> State | None:
    """The state of the flow run, if Prefect knows it."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(run_id)).state
    except ObjectNotFound:
        return None
    except Exception as error:  # Prefect's client raises many kinds
        raise Interrupted(words_of(error)) from error

"""Pauses batches, and resumes them where they ran."""

from __future__ import annotations

from typing import Final, Literal

from batchline.engine.lease import PAUSE_STOP, active_lease
from batchline.engine.services import Services
from batchline.models.errors import Conflict
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.records.store import BatchRecord

Runner = Literal["same process", "flow run", "server"]
"""Runner that continues a resumed batch: the process that still finishes requests, its flow run, or a server."""

SERVER_ORIGINS: Final = frozenset({"api", "frontend"})
"""Origins of the batches that a server runs; others have runners of their own."""

DEFAULT_MESSAGE: Final = "someone paused it"


def pause_batch(services: Services, batch_id: str, message: str = DEFAULT_MESSAGE) -> BatchRecord:
    """Pause the batch and return it; a paused one stays as it is.

    Raises `Conflict` if its requests are settled.
    """
    batch = services.records.pause(batch_id, code="by_user", message=message)
    lease = active_lease(batch_id)
    if lease is not None and lease.services is services and lease.batch.in_progress_at is not None:
        lease.session.stop(PAUSE_STOP)  # at once, not only at the next heartbeat
    return batch


def resume_where_it_ran(services: Services, batch: BatchRecord) -> Runner | None:
    """End the pause if a runner then continues the batch, and return which; else return None.

    Raises `Conflict` if the batch is not paused, and `Interrupted` if Prefect fails; the batch then stays paused.
    """
    require_paused(batch)
    runner = _find_runner(services, batch)
    if runner is not None:
        services.records.resume(batch.id)
    return runner


def require_paused(batch: BatchRecord) -> None:
    """Raise `Conflict` unless the batch is paused."""
    if batch.status in TERMINAL_STATUSES:
        raise Conflict(f"batch {batch.id} is {batch.status}; there is nothing to resume; retry it?")
    if batch.pause is None:
        raise Conflict(f"batch {batch.id} is {batch.status} and not paused")


def _find_runner(services: Services, batch: BatchRecord) -> Runner | None:
    has_run = False
    if batch.last_flow_run_id is not None:
        from batchline.orchestration import pause_in_prefect, run_needed  # noqa: PLC0415 - loads Prefect

        has_run = run_needed.has_prefect_server()
        # Before the record is changed: a resumed run that finds the batch still paused ends the pause itself.
        if has_run and pause_in_prefect.resume_run(batch.last_flow_run_id):
            return "flow run"
    if batch.is_leased(now=services.records.now(), lease_s=services.settings.lease_s):
        return "same process"
    if has_run and pause_in_prefect.start_new_run(services, batch):
        return "flow run"
    is_of_server = batch.dwext is not None and batch.dwext.source in SERVER_ORIGINS
    return "server" if is_of_server and batch.last_flow_run_id is None else None

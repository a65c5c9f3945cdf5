"""Operations on the runs of batches: run, pause, interrupt, watch, and read their progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from batchline.client.access import Access
from batchline.client.pauses import DEFAULT_MESSAGE, Runner, pause_batch, resume_where_it_ran
from batchline.client.progress import BatchProgress, ProgressTracker, runner_state
from batchline.client.runner import BatchRunner
from batchline.engine.closed_window_message import closed_window_message
from batchline.engine.lease import active_lease, wait_for_lease
from batchline.engine.pipeline import run_local
from batchline.engine.progress_meter import ProgressMeter
from batchline.engine.services import Services
from batchline.models.batches import BatchResponse
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import BatchRecord

POLL_INTERVAL_S: Final = 0.5


class BatchRuns:
    """The part of `Batches` that concerns the processes that run batches."""

    def __init__(self, services: Services, runner: BatchRunner, tracker: ProgressTracker, access: Access) -> None:
        self._services = services
        self._runner = runner
        self._tracker = tracker
        self._access = access

    def record(self, batch_id: str) -> BatchRecord:
        """Return the batch's database record, including its lease; raises `NotFound`."""
        return self._services.records.get_batch(batch_id, member_id=self._access.member_filter)

    def run(self, batch_id: str) -> BatchResponse:
        """Run the batch to its end, or continue an interrupted one, and return it.

        Raises `Conflict` if another runner holds it, `BatchPaused` if it is paused, `Interrupted` or
        `StorageFault` if it stops early.
        """
        return run_local(self._services, self.record(batch_id).id).to_response(include_analytics=True)

    def pause(self, batch_id: str, *, message: str = DEFAULT_MESSAGE) -> BatchResponse:
        """Pause the batch and return it; all processes stop sending for it within two seconds.

        Requests in flight are finished and saved, and the completion window stands still. One that is
        `validating` is validated before. Does nothing if it is paused; raises `Conflict` if its requests are
        settled.
        """
        self.record(batch_id)
        return pause_batch(self._services, batch_id, message).to_response()

    def resume_where_it_ran(self, batch_id: str) -> Runner | None:
        """End the pause if another runner will continue the batch, and return which.

        Returns None if there is none: the batch stays paused until `resume` continues it in this process. "server"
        is any server that uses this database. Raises `Conflict` if it is not paused, and `Interrupted` if Prefect
        fails.
        """
        return resume_where_it_ran(self._services, self.record(batch_id))

    def end_pause(self, batch_id: str) -> BatchResponse:
        """End the pause for a caller that then runs the batch; raises `Conflict` if it is not paused."""
        return self._services.records.resume(self.record(batch_id).id).to_response()

    def prepare_run(self, batch_id: str, notify: Callable[[str], object]) -> str | None:
        """Wait until the lease of a dead runner expires; `notify` receives the reason to wait.

        Returns a notice if the completion window has closed, else None. Raises `Conflict` if the runner is alive.
        """
        batch = self.record(batch_id)
        wait_for_lease(self._services, batch, notify)
        return closed_window_message(batch, self._services.settings, now=time.time())

    def interrupt(self, batch_id: str, reason: str) -> bool:
        """Stop the batch's run in this process, which saves its answers; return False if there is none."""
        lease = active_lease(batch_id)
        if lease is not None:
            lease.interrupt(reason)
        return lease is not None

    def is_queued(self, batch_id: str) -> bool:
        """Return True if this client's runner has the batch in its queue or runs it."""
        return self._runner.is_running(batch_id)

    def runner_state(self, batch: BatchRecord) -> str:
        """Return why an active batch has no runner; empty if it has one or the batch has ended."""
        return runner_state(batch, now=self._services.records.now(), lease_s=self._services.settings.lease_s)

    def progress(self, batch: BatchRecord) -> BatchProgress:
        """Return the batch's progress, with a rate that is measured between calls."""
        return self._tracker.snapshot(batch)

    def meter(self, batch_id: str) -> ProgressMeter | None:
        """Return a meter of the batch's run in this process, or None if there is none."""
        lease = active_lease(batch_id)
        return None if lease is None else ProgressMeter(lease)

    def watch(self, batch_id: str, *, abandoned_s: float) -> Iterator[BatchRecord]:
        """Yield the batch's record repeatedly until it has ended, or no process has run it for `abandoned_s`.

        A batch that waits for its first run is watched until its window has closed, unless `abandoned_s` is 0.
        """
        active_at = time.monotonic()
        while (batch := self.record(batch_id)).status not in TERMINAL_STATUSES:
            note, now = self.runner_state(batch), self._services.records.now()
            is_waiting = batch.status is BatchStatus.VALIDATING and now < batch.expires_at and abandoned_s > 0
            if not note or is_waiting:
                active_at = time.monotonic()
            elif time.monotonic() - active_at >= abandoned_s:
                return
            yield batch
            time.sleep(POLL_INTERVAL_S)

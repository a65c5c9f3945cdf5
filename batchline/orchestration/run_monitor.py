"""Monitors a flow run: shows the batch's progress and handles cancel, suspend and SIGTERM.

Cancelling the flow run cancels its batch, which then writes its files. Suspending it stops sending, saves the
answers and ends the process; Resume starts another. SIGTERM stops the batch cleanly, so that the next run can
continue it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause, TerminationSignal
from prefect.logging.loggers import LoggingAdapter

from batchline.engine.lease import CANCEL_STOP, BatchLease
from batchline.engine.progress_meter import ProgressMeter
from batchline.models.errors import Conflict, Interrupted, NotFound, StorageFault
from batchline.models.formatting import format_span, join_parts
from batchline.models.status import BatchStatus
from batchline.models.stop_signals import handle_stop_signals, kill_process
from batchline.orchestration.artifacts import ProgressArtifact
from batchline.orchestration.events import emit_batch_event, emit_stopped
from batchline.orchestration.prefect_errors import log_failures
from batchline.orchestration.requested_actions import RunAction, RunExecution

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S: Final = 3.0
STATE_POLL_INTERVAL_S: Final = 2.0
"""Seconds between polls of the run's state; suspending it, or cancelling it without a worker, sends no signal."""

TICK_S: Final = 1.0

LOG_INTERVAL_S: Final = 60.0
RISK_CHECK_DELAY_S: Final = 60.0
"""Seconds before the batch's end is estimated; its speed varies until then."""


@contextmanager
def monitor_run(lease: BatchLease) -> Iterator[None]:
    """Monitor the flow run of a batch until the block ends.

    Raises `TerminationSignal` if SIGTERM stopped the batch, and Prefect's `Pause`, which leaves the run's state
    unchanged, if the flow run is suspended or another process executes it now.
    """
    context, terminating = FlowRunContext.get(), threading.Event()
    if context is None or context.flow_run is None:
        yield
        return
    monitor = _RunMonitor(lease, context.flow_run, context.flow.name if context.flow else "", get_run_logger())
    with _handle_sigterm(monitor, terminating), monitor:
        try:
            yield
        except Pause:  # raised by Prefect's own observer, at the start or the end of a task
            monitor.detach()
            raise
        except Interrupted as error:
            if monitor.is_detaching:
                raise Pause(state=monitor.detach()) from error
            if terminating.is_set():
                # Release here: the signal ends the process without another chance.
                lease.services.dispatcher.release_quota()
                raise TerminationSignal(signal.SIGTERM) from error
            raise


@contextmanager
def _handle_sigterm(monitor: _RunMonitor, terminating: threading.Event) -> Iterator[None]:
    """Cancel the batch or interrupt the run at SIGTERM, which both a cancelling worker and a shutdown send.

    A later signal ends the process at once; a repetition within two seconds counts as the first.
    """

    def stop(_number: int) -> None:
        terminating.set()
        # In a thread, because the interrupted code may hold locks that the call to Prefect needs.
        threading.Thread(target=monitor.on_sigterm, name="SIGTERM", daemon=True).start()

    # A later signal is left to the previous handler, normally the default action, which ends the process.
    kill = partial(kill_process, handler=signal.getsignal(signal.SIGTERM))
    with handle_stop_signals(stop, kill, numbers=(signal.SIGTERM,)):
        yield


class _RunMonitor:
    """A thread that shows progress and polls the flow run's state."""

    def __init__(
        self, lease: BatchLease, run: FlowRun, flow_name: str, logger: LoggingAdapter | logging.Logger
    ) -> None:
        self._lease = lease
        self._run = run
        self._flow_name = flow_name
        self._logger = logger
        self._meter = ProgressMeter(lease)
        self._artifact = ProgressArtifact(lease.batch.id, str(run.id))
        self._finished = threading.Event()
        self._execution = RunExecution(run)
        self._detached_for: State | None = None
        self._pause_reason: str | None = None
        self._is_at_risk = self._has_failed = False
        self._started_at = self._polled_at = self._shown_at = self._logged_at = time.monotonic()
        self._thread = threading.Thread(target=self._monitor_loop, name=f"watch {lease.batch.id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._finished.set()
        self._thread.join()
        self._artifact.show_end(self._lease)

    @property
    def is_detaching(self) -> bool:
        """True once the batch was stopped because the flow run is suspended or executed by another process."""
        return self._detached_for is not None

    def detach(self) -> State | None:
        """Return the flow run's state, read again at the last moment.

        A suspended run pauses its batch. A run that was cancelled after it was suspended cancels its batch;
        housekeeping then writes the files.
        """
        with get_client(sync_client=True) as client:
            action, state = self._poll_action(client)
            if action is RunAction.CANCEL:
                self._cancel_batch()
            elif state is not None and state.is_paused():
                self._pause_batch()
        emit_stopped(self._run, self._flow_name)
        return state or self._detached_for

    def on_sigterm(self) -> None:
        """Apply the action that the run's state requests; interrupt the batch if it requests none."""
        action, state = RunAction.CONTINUE, None
        # The process ends soon even if Prefect does not answer.
        with log_failures("the flow run's state is unknown"), get_client(sync_client=True) as client:
            action, state = self._poll_action(client)
        if action is RunAction.CONTINUE:
            self._logger.warning("the process was asked to end; answers are saved, and another run can continue")
            self._lease.interrupt("its process was asked to end")
        else:
            self._apply_action(action, state)

    def _monitor_loop(self) -> None:
        interval_s = min(TICK_S, PROGRESS_INTERVAL_S)
        if self._finished.wait(interval_s):  # a short batch needs no client
            return
        # One client for all polls: creating one takes more CPU than a request.
        with get_client(sync_client=True) as client:
            self._check_once(client)
            while not self._finished.wait(interval_s):
                self._check_once(client)

    def _check_once(self, client: SyncPrefectClient) -> None:
        """Run the checks that are due; survive failures, or a cancelled run would go unnoticed."""
        try:
            now = time.monotonic()
            if now - self._polled_at >= STATE_POLL_INTERVAL_S and self._lease.session.stop_reason is None:
                self._polled_at = now
                self._apply_action(*self._poll_action(client))
            if now - self._shown_at >= PROGRESS_INTERVAL_S:
                self._shown_at = now
                self._show_progress(client)
        except Exception:
            if not self._has_failed:
                log.exception("the flow run could not be monitored; trying again")
            self._has_failed = True

    def _show_progress(self, client: SyncPrefectClient) -> None:
        snapshot = self._meter.read()
        if snapshot is None:
            return
        self._artifact.show_progress(snapshot, client)
        if snapshot.paused != self._pause_reason:
            self._pause_reason = snapshot.paused
            text = f"is paused: {snapshot.paused}" if snapshot.paused else "continues"
            self._logger.log(logging.WARNING if snapshot.paused else logging.INFO, "sending %s", text)
        self._report_deadline_risk()
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            counts = f"{snapshot.settled:,} of {snapshot.total:,} · {snapshot.failed:,} failed"
            self._logger.info("%s", join_parts(counts, snapshot.eta))

    def _poll_action(self, client: SyncPrefectClient) -> tuple[RunAction, State | None]:
        """Read the requested action from Prefect; CONTINUE if it fails, as the next poll follows soon."""
        action, state = RunAction.CONTINUE, None
        with log_failures("the flow run's state is unknown", logging.DEBUG):
            action, state = self._execution.requested_action(client)
        return action, state

    def _apply_action(self, action: RunAction, state: State | None) -> None:
        if action is RunAction.CANCEL:
            self._cancel_batch()
        elif action is RunAction.DETACH:
            self._detached_for = state
            if state is not None and state.is_paused():
                self._logger.info(
                    "suspended: nothing more is sent until the run is resumed, and answers are saved"
                )
                if self._pause_batch():
                    return
                self._lease.interrupt("its flow run is suspended")
            else:
                reason = "another process executes its flow run now"
                self._logger.info("sending stops: %s; answers are saved, and that process continues", reason)
                self._lease.interrupt(reason)

    def _pause_batch(self) -> bool:
        """Pause the batch; return False if it sends nothing more, or if the records fail.

        In that case housekeeping pauses it later.
        """
        try:
            self._lease.pause("its flow run was suspended in Prefect")
        except (Conflict, NotFound, StorageFault):
            return False
        return True

    def _cancel_batch(self) -> None:
        lease = self._lease
        self._logger.info("cancelled: nothing more is sent, and the answers received so far are written")
        with suppress(Conflict, NotFound, StorageFault):
            lease.records.change_status(lease.batch.id, BatchStatus.CANCELLING, now=int(time.time()))
            lease.session.stop(CANCEL_STOP)

    def _report_deadline_risk(self) -> None:
        """Report once if the batch will miss its window at its current speed."""
        batch, eta_s = self._lease.batch, self._meter.eta_s()
        if self._is_at_risk or eta_s is None or time.monotonic() - self._started_at < RISK_CHECK_DELAY_S:
            return
        late_s = time.time() + eta_s - batch.expires_at
        if late_s > 0:
            self._is_at_risk = True
            self._logger.warning("at this speed the batch ends %s after its window", format_span(late_s))
            completed, failed = self._lease.counts()
            emit_batch_event(
                "deadline_at_risk",
                batch,
                run_id=self._run.id,
                completed=completed,
                failed=failed,
                late_by_s=round(late_s),
            )

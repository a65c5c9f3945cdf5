"""What goes on beside a batch's steps: its progress is shown, and what Prefect and the machine ask for is done.

A cancelled flow run cancels its batch, which then writes what it has. A suspended one stops sending, saves its
answers and ends its process; Resume starts another. A process that is told to end stops its batch cleanly, so that
the next run goes on with it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause, TerminationSignal
from prefect.logging.loggers import LoggingAdapter

from batchline.engine.lease import CANCEL_STOP, BatchLease
from batchline.engine.progress_meter import ProgressMeter, ProgressSnapshot
from batchline.models.errors import Conflict, Interrupted, NotFound, StorageFault
from batchline.models.formatting import span
from batchline.models.status import BatchStatus
from batchline.models.stop_signals import StopSignals
from batchline.orchestration.artifacts import ProgressArtifact
from batchline.orchestration.events import emit_batch_event, emit_stopped
from batchline.orchestration.run_states import RunAction, RunExecution

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S: Final = 3.0
STATE_POLL_INTERVAL_S: Final = 2.0
"""Between reads of the flow run's state, which find a suspended run, and a cancelled one that has no worker."""

TICK_S: Final = 1.0

LOG_INTERVAL_S: Final = 60.0
RISK_CHECK_DELAY_S: Final = 60.0
"""A batch's speed says little of its end before."""


@contextmanager
def monitor_run(lease: BatchLease) -> Iterator[None]:
    """Look after the run of a batch until the block ends.

    Raises `TerminationSignal` if the process was told to end and the batch was stopped for it, and Prefect's
    `Pause` if the flow run is suspended or another process executes it now, so that its state is left as it is.
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
                # The signal ends the process without a chance to do so later.
                lease.services.dispatcher.release_quota()
                raise TerminationSignal(signal.SIGTERM) from error
            raise


@contextmanager
def _handle_sigterm(monitor: _RunMonitor, terminating: threading.Event) -> Iterator[None]:
    """At SIGTERM, which a worker sends to cancel a run and a machine to end a process, do what is meant by it.

    A later one ends the process at once; one that is repeated within two seconds means the same as the first.
    Only a main thread can be told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    stop_signals = StopSignals()

    def handle_signal(number: int, frame: FrameType | None) -> None:
        del frame
        occurrence = stop_signals.classify_next()
        if occurrence == "later":
            signal.signal(number, previous_handler)
            os.kill(os.getpid(), number)
        if occurrence != "first":
            return
        terminating.set()
        # Not here: what the signal came upon may hold the locks that asking Prefect needs.
        threading.Thread(target=monitor.on_sigterm, name="told to end", daemon=True).start()

    previous_handler = signal.signal(signal.SIGTERM, handle_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


class _RunMonitor:
    """A thread that shows progress and looks whether the flow run is being cancelled."""

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
        """True once the batch was stopped because the flow run is suspended, or is another process's now."""
        return self._detached_for is not None

    def detach(self) -> State | None:
        """Return the state in which the flow run is left, as late as can be.

        A run that was cancelled after it was suspended cancels its batch, whose files housekeeping then writes.
        """
        with get_client(sync_client=True) as client:
            action, state = self._poll_action(client)
            if action is RunAction.CANCEL:
                self._cancel_batch()
        emit_stopped(self._run, self._flow_name)
        return state or self._detached_for

    def on_sigterm(self) -> None:
        """Do what the run's state asks for; a process that is told to end for another reason stops its batch."""
        try:
            with get_client(sync_client=True) as client:
                action, state = self._poll_action(client)
        except Exception:  # the process is ended soon, whatever Prefect says
            log.exception("the flow run's state is not known")
            action, state = RunAction.CONTINUE, None
        if action is RunAction.CONTINUE:
            self._logger.warning("the process was told to end; answers are saved, and another run can go on")
            self._lease.interrupt("its process was told to end")
        else:
            self._apply_action(action, state)

    def _monitor_loop(self) -> None:
        interval_s = min(TICK_S, PROGRESS_INTERVAL_S)
        if self._finished.wait(interval_s):
            return
        # One client for all looks: to make one takes more CPU than to ask.
        with get_client(sync_client=True) as client:
            self._check_once(client)
            while not self._finished.wait(interval_s):
                self._check_once(client)

    def _check_once(self, client: SyncPrefectClient) -> None:
        """Do what is due; the thread outlives what fails, or a cancelled run would not be noticed."""
        try:
            self._run_due_checks(client)
        except Exception:
            if not self._has_failed:
                log.exception("watching the flow run failed, and is tried again")
            self._has_failed = True

    def _run_due_checks(self, client: SyncPrefectClient) -> None:
        now = time.monotonic()
        if now - self._polled_at >= STATE_POLL_INTERVAL_S and self._lease.session.stop_reason is None:
            self._polled_at = now
            self._apply_action(*self._poll_action(client))
        if now - self._shown_at >= PROGRESS_INTERVAL_S:
            self._shown_at = now
            self._show_progress(client)

    def _show_progress(self, client: SyncPrefectClient) -> None:
        snapshot = self._meter.read()
        if snapshot is None:
            return
        self._artifact.show_progress(snapshot, client)
        self._log_pauses(snapshot)
        self._report_deadline_risk()
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            parts = (f"{snapshot.settled:,} of {snapshot.total:,}", f"{snapshot.failed:,} failed", snapshot.eta)
            self._logger.info("%s", " · ".join(part for part in parts if part))

    def _poll_action(self, client: SyncPrefectClient) -> tuple[RunAction, State | None]:
        """Ask Prefect; it is asked again later if it does not answer."""
        try:
            return self._execution.requested_action(client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("the flow run's state is not known: %s", error)
            return RunAction.CONTINUE, None

    def _apply_action(self, action: RunAction, state: State | None) -> None:
        if action is RunAction.CANCEL:
            self._cancel_batch()
        elif action is RunAction.DETACH:
            is_paused = state is not None and state.is_paused()
            reason = "its flow run is suspended" if is_paused else "another process executes its flow run now"
            self._logger.info("sending stops: %s; answers are saved, and the next process continues", reason)
            self._detached_for = state
            self._lease.interrupt(reason)

    def _cancel_batch(self) -> None:
        lease = self._lease
        self._logger.info("cancelled: nothing more is sent, what was answered is written")
        with suppress(Conflict, NotFound, StorageFault):
            lease.records.change_status(lease.batch.id, BatchStatus.CANCELLING, now=int(time.time()))
            lease.session.stop(CANCEL_STOP)

    def _log_pauses(self, snapshot: ProgressSnapshot) -> None:
        if snapshot.paused == self._pause_reason:
            return
        if snapshot.paused:
            self._logger.warning("sending pauses: %s", snapshot.paused)
        else:
            self._logger.info("sending goes on")
        self._pause_reason = snapshot.paused

    def _report_deadline_risk(self) -> None:
        """Say once that the batch will not be done within its window at the speed that it has."""
        batch, eta_s = self._lease.batch, self._meter.eta_s()
        if self._is_at_risk or eta_s is None or time.monotonic() - self._started_at < RISK_CHECK_DELAY_S:
            return
        late_s = time.time() + eta_s - batch.expires_at
        if late_s > 0:
            self._is_at_risk = True
            self._logger.warning("at this speed the batch ends %s after its window", span(late_s))
            completed, failed = self._lease.counts()
            emit_batch_event(
                "deadline_at_risk",
                batch,
                run_id=self._run.id,
                completed=completed,
                failed=failed,
                late_by_s=round(late_s),
            )

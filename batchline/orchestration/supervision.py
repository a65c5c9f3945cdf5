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

from batchline.models.errors import Conflict, Interrupted, NotFound, StorageFault
from batchline.models.formatting import span
from batchline.models.signals import StopSignals
from batchline.models.status import BatchStatus
from batchline.orchestration.artifacts import ProgressArtifact
from batchline.orchestration.events import emit, emit_stopped
from batchline.orchestration.run_states import Attempt, Wish
from batchline.steps.hold import CANCELLED, BatchHold
from batchline.steps.meter import Meter, Reading

log = logging.getLogger(__name__)

SHOWN_EVERY_S: Final = 3.0
ASKED_EVERY_S: Final = 2.0
"""Between reads of the flow run's state, which find a suspended run, and a cancelled one that has no worker."""

TICK_S: Final = 1.0

LOGGED_EVERY_S: Final = 60.0
AT_RISK_AFTER_S: Final = 60.0
"""A batch's speed says little of its end before."""


@contextmanager
def supervised(hold: BatchHold) -> Iterator[None]:
    """Look after the run of a batch until the block ends.

    Raises `TerminationSignal` if the process was told to end and the batch was stopped for it, and Prefect's
    `Pause` if the flow run is suspended or another process executes it now, so that its state is left as it is.
    """
    context, told = FlowRunContext.get(), threading.Event()
    if context is None or context.flow_run is None:
        yield
        return
    watch = _Watch(hold, context.flow_run, context.flow.name if context.flow else "", get_run_logger())
    with _signals(watch, told), watch:
        try:
            yield
        except Pause:  # raised by Prefect's own observer, at the start or the end of a task
            watch.leave()
            raise
        except Interrupted as error:
            if watch.is_leaving:
                raise Pause(state=watch.leave()) from error
            if told.is_set():
                hold.engine.caller.leave_shares()  # the signal ends the process without a chance to do so later
                raise TerminationSignal(signal.SIGTERM) from error
            raise


@contextmanager
def _signals(watch: _Watch, told: threading.Event) -> Iterator[None]:
    """At SIGTERM, which a worker sends to cancel a run and a machine to end a process, do what is meant by it.

    A later one ends the process at once; one that is repeated within two seconds means the same as the first.
    Only a main thread can be told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    signals = StopSignals()

    def obey(number: int, frame: FrameType | None) -> None:
        del frame
        which = signals.next()
        if which == "later":
            signal.signal(number, before)
            os.kill(os.getpid(), number)
        if which != "first":
            return
        told.set()
        # Not here: what the signal came upon may hold the locks that asking Prefect needs.
        threading.Thread(target=watch.obey_signal, name="told to end", daemon=True).start()

    before = signal.signal(signal.SIGTERM, obey)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Watch:
    """A thread that shows progress and looks whether the flow run is being cancelled."""

    def __init__(
        self, hold: BatchHold, run: FlowRun, flow_name: str, logger: LoggingAdapter | logging.Logger
    ) -> None:
        self._hold = hold
        self._run = run
        self._flow_name = flow_name
        self._logger = logger
        self._meter = Meter(hold)
        self._artifact = ProgressArtifact(hold.batch.id, str(run.id))
        self._over = threading.Event()
        self._attempt = Attempt(run)
        self._left_for: State | None = None
        self._paused: str | None = None
        self._at_risk = self._has_failed = False
        self._began = self._asked = self._shown = self._logged = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name=f"watch {hold.batch.id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()
        self._artifact.end(self._hold)

    @property
    def is_leaving(self) -> bool:
        """True once the batch was stopped because the flow run is suspended, or is another process's now."""
        return self._left_for is not None

    def leave(self) -> State | None:
        """Return the state in which the flow run is left, as late as can be.

        A run that was cancelled after it was suspended cancels its batch, whose files housekeeping then writes.
        """
        with get_client(sync_client=True) as client:
            wish, state = self._wish(client)
            if wish is Wish.CANCEL:
                self._cancel()
        emit_stopped(self._run, self._flow_name)
        return state or self._left_for

    def obey_signal(self) -> None:
        """Do what the run's state asks for; a process that is told to end for another reason stops its batch."""
        try:
            with get_client(sync_client=True) as client:
                wish, state = self._wish(client)
        except Exception:  # the process is ended soon, whatever Prefect says
            log.exception("the flow run's state is not known")
            wish, state = Wish.CONTINUE, None
        if wish is Wish.CONTINUE:
            self._logger.warning("the process was told to end; answers are saved, and another run can go on")
            self._hold.interrupt("its process was told to end")
        else:
            self._do(wish, state)

    def _watch(self) -> None:
        pause_s = min(TICK_S, SHOWN_EVERY_S)
        if self._over.wait(pause_s):
            return
        # One client for all looks: to make one takes more CPU than to ask.
        with get_client(sync_client=True) as client:
            self._look(client)
            while not self._over.wait(pause_s):
                self._look(client)

    def _look(self, client: SyncPrefectClient) -> None:
        """Do what is due; the thread outlives what fails, or a cancelled run would not be noticed."""
        try:
            self._do_what_is_due(client)
        except Exception:
            if not self._has_failed:
                log.exception("watching the flow run failed, and is tried again")
            self._has_failed = True

    def _do_what_is_due(self, client: SyncPrefectClient) -> None:
        now = time.monotonic()
        if now - self._asked >= ASKED_EVERY_S and self._hold.run.stopped is None:
            self._asked = now
            self._do(*self._wish(client))
        if now - self._shown >= SHOWN_EVERY_S:
            self._shown = now
            self._show(client)

    def _show(self, client: SyncPrefectClient) -> None:
        reading = self._meter.read()
        if reading is None:
            return
        self._artifact.show(reading, client)
        self._tell_pauses(reading)
        self._tell_risk()
        now = time.monotonic()
        if now - self._logged >= LOGGED_EVERY_S:
            self._logged = now
            words = (f"{reading.settled:,} of {reading.total:,}", f"{reading.failed:,} failed", reading.left)
            self._logger.info("%s", " · ".join(word for word in words if word))

    def _wish(self, client: SyncPrefectClient) -> tuple[Wish, State | None]:
        """Ask Prefect; it is asked again later if it does not answer."""
        try:
            return self._attempt.wish(client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("the flow run's state is not known: %s", error)
            return Wish.CONTINUE, None

    def _do(self, wish: Wish, state: State | None) -> None:
        if wish is Wish.CANCEL:
            self._cancel()
        elif wish is Wish.LEAVE:
            is_paused = state is not None and state.is_paused()
            why = "its flow run is suspended" if is_paused else "another process executes its flow run now"
            self._logger.info("sending stops: %s; answers are saved, and the next process continues", why)
            self._left_for = state
            self._hold.interrupt(why)

    def _cancel(self) -> None:
        hold = self._hold
        self._logger.info("cancelled: nothing more is sent, what was answered is written")
        with suppress(Conflict, NotFound, StorageFault):
            hold.records.move(hold.batch.id, BatchStatus.CANCELLING, now=int(time.time()))
            hold.run.stop(CANCELLED)

    def _tell_pauses(self, reading: Reading) -> None:
        if reading.paused == self._paused:
            return
        if reading.paused:
            self._logger.warning("sending pauses: %s", reading.paused)
        else:
            self._logger.info("sending goes on")
        self._paused = reading.paused

    def _tell_risk(self) -> None:
        """Say once that the batch will not be done within its window at the speed that it has."""
        batch, left_s = self._hold.batch, self._meter.left_s()
        if self._at_risk or left_s is None or time.monotonic() - self._began < AT_RISK_AFTER_S:
            return
        late_s = time.time() + left_s - batch.expires_at
        if late_s > 0:
            self._at_risk = True
            self._logger.warning("at this speed the batch ends %s after its window", span(late_s))
            completed, failed = self._hold.counts()
            emit(
                "deadline_at_risk",
                batch,
                run_id=self._run.id,
                completed=completed,
                failed=failed,
                late_by_s=round(late_s),
            )

"""Runs batches in this process, some at a time on threads of their own, while the program does other things."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from typing import Protocol

from batchline.models.errors import BatchlineError, Conflict
from batchline.steps.engine import Engine
from batchline.steps.hold import held
from batchline.steps.local import run_local

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Batches under way at once; the others wait their turn, and take no thread."""

INTERRUPT_S = 0.5


class Starter(Protocol):
    """What has batches run, here or elsewhere."""

    def check(self) -> None:
        """Raise `InvalidInput` where the settings do not allow to run any."""

    def start(self, batch_id: str) -> None:
        """Have the batch run to its end, unless it does already; raises `Conflict` once it is closed."""

    def is_running(self, batch_id: str) -> bool:
        """Whether it is at work on the batch, or has just seen to it."""

    def error_of(self, batch_id: str) -> BaseException | None:
        """What stopped the batch's run here, if something did."""

    def close(self) -> None:
        """Start nothing more, and stop what runs here."""


class Runner:
    """Runs batches here, and knows which of them it runs."""

    def __init__(self, engine: Engine, *, most_at_once: int = MOST_AT_ONCE) -> None:
        self._engine = engine
        self._most_at_once = most_at_once
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()
        self._again: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._closing = False

    def check(self) -> None:
        """Raise `InvalidInput` where no upstream is configured."""
        _ = self._engine.caller

    def start(self, batch_id: str) -> None:
        """Run the batch to its end in the background; where it runs here already, look again at that one's end."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._known:
                self._again.add(batch_id)
                return
            self._known.add(batch_id)
            self._waiting.append(batch_id)
            if len(self._threads) < self._most_at_once:
                self._add_thread()

    def _add_thread(self) -> None:
        if not self._threads:
            atexit.register(self.close)
        thread = threading.Thread(target=self._work, name="runner", daemon=True)
        self._threads.add(thread)
        thread.start()

    def error_of(self, batch_id: str) -> BaseException | None:
        """What stopped the batch's run here, if something did."""
        return self._errors.get(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Whether the batch runs here, or waits to."""
        return batch_id in self._known

    def close(self) -> None:
        """Stop what runs; answers are saved, and the batches can be resumed."""
        with self._lock:
            self._closing = True
            threads = set(self._threads)
        for thread in threads:
            while thread.is_alive():
                self._interrupt()  # again and again, as one may only be about to begin
                thread.join(INTERRUPT_S)
        atexit.unregister(self.close)

    def _interrupt(self) -> None:
        with self._lock:
            known = set(self._known)
        for batch_id in known:
            hold = held(batch_id)
            if hold is not None and hold.engine is self._engine:
                hold.interrupt("the program that ran it has ended")

    def _work(self) -> None:
        while (batch_id := self._next()) is not None:
            self._errors.pop(batch_id, None)
            self._run(batch_id)
            with self._lock:
                if batch_id in self._again:
                    self._again.discard(batch_id)
                    self._waiting.appendleft(batch_id)
                else:
                    self._known.discard(batch_id)

    def _next(self) -> str | None:
        """The batch that is to run next; where there is none, this thread is counted no more."""
        with self._lock:
            if self._waiting and not self._closing:
                return self._waiting.popleft()
            if self._closing:
                self._known.difference_update(self._waiting)
            self._threads.discard(threading.current_thread())
            return None

    def _run(self, batch_id: str) -> None:
        try:
            run_local(self._engine, batch_id)
        except BatchlineError as error:
            self._errors[batch_id] = error
            log.warning("batch %s stopped: %s", batch_id, error)
        except BaseException as error:
            self._errors[batch_id] = error
            log.exception("batch %s stopped", batch_id)

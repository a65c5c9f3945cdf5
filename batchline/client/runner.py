"""Runs batches in this process, some at a time on threads of their own, while the program does other things."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from typing import Protocol

from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.errors import BatchlineError, Conflict

log = logging.getLogger(__name__)

MAX_CONCURRENT_BATCHES = 16
"""Batches under way at once; the others wait their turn, and take no thread."""

INTERRUPT_INTERVAL_S = 0.5


class BatchRunner(Protocol):
    """What has batches run, here or elsewhere."""

    def require_configured(self) -> None:
        """Raise `InvalidInput` where the settings do not allow to run any."""

    def start(self, batch_id: str) -> None:
        """Have the batch run to its end, unless it does already; raises `Conflict` once it is closed."""

    def is_running(self, batch_id: str) -> bool:
        """Whether it is at work on the batch, or has just seen to it."""

    def find_error(self, batch_id: str) -> BaseException | None:
        """What stopped the batch's run here, if something did."""

    def close(self) -> None:
        """Start nothing more, and stop what runs here."""


class ThreadRunner:
    """Runs batches here, and knows which of them it runs."""

    def __init__(self, services: Services, *, max_concurrent: int = MAX_CONCURRENT_BATCHES) -> None:
        self._services = services
        self._max_concurrent = max_concurrent
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._queue: deque[str] = deque()
        self._batch_ids: set[str] = set()
        self._rerun_ids: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._closing = False

    def require_configured(self) -> None:
        """Raise `InvalidInput` where no upstream is configured."""
        _ = self._services.dispatcher

    def start(self, batch_id: str) -> None:
        """Run the batch to its end in the background; where it runs here already, look again at that one's end."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._batch_ids:
                self._rerun_ids.add(batch_id)
                return
            self._batch_ids.add(batch_id)
            self._queue.append(batch_id)
            if len(self._threads) < self._max_concurrent:
                self._add_thread()

    def _add_thread(self) -> None:
        if not self._threads:
            atexit.register(self.close)
        thread = threading.Thread(target=self._run_loop, name="runner", daemon=True)
        self._threads.add(thread)
        thread.start()

    def find_error(self, batch_id: str) -> BaseException | None:
        """What stopped the batch's run here, if something did."""
        return self._errors.get(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Whether the batch runs here, or waits to."""
        return batch_id in self._batch_ids

    def close(self) -> None:
        """Stop what runs; answers are saved, and the batches can be resumed."""
        with self._lock:
            self._closing = True
            threads = set(self._threads)
        for thread in threads:
            while thread.is_alive():
                self._interrupt_batches()  # again and again, as one may only be about to begin
                thread.join(INTERRUPT_INTERVAL_S)
        atexit.unregister(self.close)

    def _interrupt_batches(self) -> None:
        with self._lock:
            batch_ids = set(self._batch_ids)
        for batch_id in batch_ids:
            lease = active_lease(batch_id)
            if lease is not None and lease.services is self._services:
                lease.interrupt("the program that ran it has ended")

    def _run_loop(self) -> None:
        while (batch_id := self._take_next()) is not None:
            self._errors.pop(batch_id, None)
            self._run_batch(batch_id)
            with self._lock:
                if batch_id in self._rerun_ids:
                    self._rerun_ids.discard(batch_id)
                    self._queue.appendleft(batch_id)
                else:
                    self._batch_ids.discard(batch_id)

    def _take_next(self) -> str | None:
        """The batch that is to run next; where there is none, this thread is counted no more."""
        with self._lock:
            if self._queue and not self._closing:
                return self._queue.popleft()
            if self._closing:
                self._batch_ids.difference_update(self._queue)
            self._threads.discard(threading.current_thread())
            return None

    def _run_batch(self, batch_id: str) -> None:
        try:
            run_local(self._services, batch_id)
        except BatchlineError as error:
            self._errors[batch_id] = error
            log.warning("batch %s stopped: %s", batch_id, error)
        except BaseException as error:
            self._errors[batch_id] = error
            log.exception("batch %s stopped", batch_id)

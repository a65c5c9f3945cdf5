"""Run batches on background threads of this process, a limited number at a time."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from typing import Protocol

from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.errors import BatchlineError, BatchPaused, Conflict

log = logging.getLogger(__name__)

MAX_CONCURRENT_BATCHES = 16
"""Maximum of batches run at once; others are queued and take no thread."""

INTERRUPT_INTERVAL_S = 0.5


class BatchRunner(Protocol):
    """Runs batches, in this process or elsewhere."""

    def require_configured(self) -> None:
        """Raise `InvalidInput` if the settings do not allow to run batches."""

    def start(self, batch_id: str) -> None:
        """Run the batch to its end unless it is running already; raises `Conflict` after `close`."""

    def is_running(self, batch_id: str) -> bool:
        """Return True if the batch is queued or running, or its run was started a moment ago."""

    def find_error(self, batch_id: str) -> BaseException | None:
        """Return the error that stopped the batch's last run here, or None."""

    def close(self) -> None:
        """Start no more runs, and stop those in this process."""


class ThreadRunner:
    """Runs batches on threads of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._queue: deque[str] = deque()
        self._batch_ids: set[str] = set()
        self._rerun_ids: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._closing = False

    def require_configured(self) -> None:
        """Raise `InvalidInput` if no upstream is configured."""
        _ = self._services.dispatcher

    def start(self, batch_id: str) -> None:
        """Run the batch to its end in the background; if it runs here already, run it once more afterwards."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._batch_ids:
                # The run may be past its last check of the batch, which a retry may just have reopened.
                self._rerun_ids.add(batch_id)
                return
            self._batch_ids.add(batch_id)
            self._queue.append(batch_id)
            if len(self._threads) < MAX_CONCURRENT_BATCHES:
                if not self._threads:
                    atexit.register(self.close)
                thread = threading.Thread(target=self._run_loop, name="runner", daemon=True)
                self._threads.add(thread)
                thread.start()

    def find_error(self, batch_id: str) -> BaseException | None:
        """Return the error that stopped the batch's last run here, or None."""
        return self._errors.get(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Return True if the batch is queued or running here."""
        return batch_id in self._batch_ids

    def close(self) -> None:
        """Interrupt running batches; answers are saved, and the batches can be resumed."""
        with self._lock:
            self._closing = True
            threads = set(self._threads)
        for thread in threads:
            while thread.is_alive():
                with self._lock:
                    batch_ids = tuple(self._batch_ids)
                for batch_id in batch_ids:  # repeated, because a batch may only be about to start
                    lease = active_lease(batch_id)
                    if lease is not None and lease.services is self._services:
                        lease.interrupt("the program that ran it has ended")
                thread.join(INTERRUPT_INTERVAL_S)
        atexit.unregister(self.close)

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
        """Return the next batch to run; None removes this thread from the pool."""
        with self._lock:
            if self._queue and not self._closing:
                return self._queue.popleft()
            if self._closing:
                self._batch_ids.difference_update(self._queue)
            # Under the lock: `start` must not count on a thread that is about to exit.
            self._threads.discard(threading.current_thread())
            return None

    def _run_batch(self, batch_id: str) -> None:
        try:
            run_local(self._services, batch_id)
        except BatchPaused as paused:
            self._errors[batch_id] = paused
            log.info("%s", paused)
        except BatchlineError as error:
            self._errors[batch_id] = error
            log.warning("batch %s stopped: %s", batch_id, error)
        except BaseException as error:
            self._errors[batch_id] = error
            log.exception("batch %s stopped", batch_id)

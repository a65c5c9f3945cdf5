"""Runs batches in this process, each on a thread of its own, while the program does other things."""

from __future__ import annotations

import atexit
import logging
import threading

from batchline.models.errors import BatchlineError, Conflict
from batchline.steps.engine import Engine
from batchline.steps.hold import held
from batchline.steps.local import run_local

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Batches under way at once; the others wait their turn."""


class Runner:
    """Starts batches and knows which of them it runs."""

    def __init__(self, engine: Engine, *, most_at_once: int = MOST_AT_ONCE) -> None:
        self._engine = engine
        self._places = threading.BoundedSemaphore(most_at_once)
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._again: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._closing = False

    def start(self, batch_id: str) -> None:
        """Run the batch to its end in the background; where it runs here already, look again at that one's end."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._threads:
                self._again.add(batch_id)
                return
            if not self._threads:
                atexit.register(self.close)
            thread = threading.Thread(target=self._run, args=(batch_id,), name=f"run {batch_id}", daemon=True)
            self._threads[batch_id] = thread
            thread.start()

    def error_of(self, batch_id: str) -> BaseException | None:
        """What stopped the batch's run here, if something did."""
        return self._errors.get(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Whether the batch runs here, or waits to."""
        return batch_id in self._threads

    def close(self) -> None:
        """Stop what runs; answers are saved, and the batches can be resumed."""
        with self._lock:
            self._closing = True
            threads = dict(self._threads)
        for batch_id in threads:
            hold = held(batch_id)
            if hold is not None and hold.engine is self._engine:
                hold.interrupt("the program that ran it has ended")
        for thread in threads.values():
            thread.join()
        atexit.unregister(self.close)

    def _run(self, batch_id: str) -> None:
        with self._places:
            while True:
                self._errors.pop(batch_id, None)
                if not self._closing:
                    self._run_once(batch_id)
                with self._lock:
                    if self._closing or batch_id not in self._again:
                        del self._threads[batch_id]
                        return
                    self._again.discard(batch_id)

    def _run_once(self, batch_id: str) -> None:
        try:
            run_local(self._engine, batch_id)
        except BatchlineError as error:
            self._errors[batch_id] = error
            log.warning("batch %s stopped: %s", batch_id, error)
        except BaseException as error:
            self._errors[batch_id] = error
            log.exception("batch %s stopped", batch_id)

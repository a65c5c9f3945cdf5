"""Has workers run batches, as runs of the deployment that the settings name, instead of this process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final, NamedTuple

from batchline.models.errors import BatchlineError, Conflict
from batchline.models.settings import Settings
from batchline.models.status import TERMINAL
from batchline.operations.client import Batchline
from batchline.steps.engine import Engine, open_engine

log = logging.getLogger(__name__)

PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 900.0
"""So long a batch is left to the run that was started for it: twice as long each time, up to this."""


def serving_client(settings: Settings | None = None) -> Batchline:
    """A client whose batches run where the setting `serve_via` says."""
    engine = open_engine(settings)
    if engine.settings.serve_via == "process":
        return Batchline(engine=engine)
    return Batchline(engine=engine, runner=DeploymentRunner(engine))


class _Pause(NamedTuple):
    length_s: float
    until: float


class DeploymentRunner:
    """Starts runs on a thread of its own, so that nobody waits for Prefect.

    What cannot be started now, because Prefect does not answer, stays as it is: the next `start` tries again.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._pauses: dict[str, _Pause] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._has_failed = False

    def check(self) -> None:
        """Raise `InvalidInput` where no Prefect server is configured."""
        from batchline.orchestration.due import server_url  # noqa: PLC0415 - loads Prefect

        server_url("BATCHLINE_SERVE_VIA is deployment, and ", param="serve_via")

    def start(self, batch_id: str) -> None:
        """Have a run started for the batch, unless one waits or is under way."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._queued:
                return
            self._queued.add(batch_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="deployment runner", daemon=True)
                self._thread.start()
        self._asked.put(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Whether the batch waits to be started here, or was so a moment ago."""
        pause = self._pauses.get(batch_id)
        return batch_id in self._queued or (pause is not None and time.monotonic() < pause.until)

    def error_of(self, batch_id: str) -> BaseException | None:
        """Nothing: what stops a run, its own state in Prefect tells."""
        del batch_id
        return None

    def close(self) -> None:
        """Start nothing more; what was started runs on."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            self._asked.put(None)
            thread.join()

    def _work(self) -> None:
        while (batch_id := self._asked.get()) is not None and not self._closing:
            try:
                self._start(batch_id)
                self._has_failed = False
            except BatchlineError as error:
                if not self._has_failed:  # or every round would say so of every batch
                    log.warning("%s; it is tried again until it works", error)
                self._has_failed = True
            except Exception:
                log.exception("batch %s could not be started", batch_id)
            finally:
                self._queued.discard(batch_id)

    def _start(self, batch_id: str) -> None:
        from batchline.orchestration.deployments import start_as_deployment  # noqa: PLC0415 - loads Prefect
        from batchline.orchestration.due import needs_run  # noqa: PLC0415 - as above

        batch = self._engine.records.get_batch(batch_id)
        if batch.status in TERMINAL or not needs_run(batch, now=time.time()):
            return
        start_as_deployment(self._engine, batch_id)
        self._leave(batch_id, now=time.monotonic())

    def _leave(self, batch_id: str, *, now: float) -> None:
        """Leave the batch to its run for a while; what was left long ago is forgotten."""
        last = self._pauses.get(batch_id)
        length_s = PAUSE_S if last is None else min(2 * last.length_s, LONGEST_PAUSE_S)
        kept = {each: pause for each, pause in self._pauses.items() if now < pause.until + LONGEST_PAUSE_S}
        self._pauses = {**kept, batch_id: _Pause(length_s, now + length_s)}

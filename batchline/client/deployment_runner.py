"""Has workers run batches, as runs of the deployment that the settings name, instead of this process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final, NamedTuple

from batchline.client.client import Batchline
from batchline.engine.services import Services, open_services
from batchline.models.errors import BatchlineError, Conflict
from batchline.models.settings import Settings
from batchline.models.status import TERMINAL_STATUSES

log = logging.getLogger(__name__)

MIN_BACKOFF_S: Final = 30.0
MAX_BACKOFF_S: Final = 900.0
"""So long a batch is left to the run that was started for it: twice as long each time, up to this."""


def client_for_server(settings: Settings | None = None) -> Batchline:
    """A client whose batches run where the setting `serve_via` says."""
    services = open_services(settings)
    if services.settings.serve_via == "process":
        return Batchline(services=services)
    return Batchline(services=services, runner=DeploymentRunner(services))


class _Backoff(NamedTuple):
    delay_s: float
    until: float


class DeploymentRunner:
    """Starts runs on a thread of its own, so that nobody waits for Prefect.

    What cannot be started now, because Prefect does not answer, stays as it is: the next `start` tries again.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._queued_ids: set[str] = set()
        self._backoffs: dict[str, _Backoff] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._has_failed = False

    def require_configured(self) -> None:
        """Raise `InvalidInput` where no Prefect server is configured."""
        from batchline.orchestration.run_needed import server_url  # noqa: PLC0415 - loads Prefect

        server_url("BATCHLINE_SERVE_VIA is deployment, and ", param="serve_via")

    def start(self, batch_id: str) -> None:
        """Have a run started for the batch, unless one waits or is under way."""
        with self._lock:
            if self._closing:
                raise Conflict("this client is closed; open another to run batches")
            if batch_id in self._queued_ids:
                return
            self._queued_ids.add(batch_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_loop, name="deployment runner", daemon=True)
                self._thread.start()
        self._queue.put(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Whether the batch waits to be started here, or was so a moment ago."""
        backoff = self._backoffs.get(batch_id)
        return batch_id in self._queued_ids or (backoff is not None and time.monotonic() < backoff.until)

    def find_error(self, batch_id: str) -> BaseException | None:
        """Nothing: what stops a run, its own state in Prefect tells."""
        del batch_id
        return None

    def close(self) -> None:
        """Start nothing more; what was started runs on."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run_loop(self) -> None:
        while (batch_id := self._queue.get()) is not None and not self._closing:
            try:
                self._start_run(batch_id)
                self._has_failed = False
            except BatchlineError as error:
                if not self._has_failed:  # or every round would say so of every batch
                    log.warning("%s; it is tried again until it works", error)
                self._has_failed = True
            except Exception:
                log.exception("batch %s could not be started", batch_id)
            finally:
                self._queued_ids.discard(batch_id)

    def _start_run(self, batch_id: str) -> None:
        from batchline.orchestration.deployments import start_deployment_run  # noqa: PLC0415 - loads Prefect
        from batchline.orchestration.run_needed import needs_run  # noqa: PLC0415 - as above

        batch = self._services.records.get_batch(batch_id)
        if batch.status in TERMINAL_STATUSES or not needs_run(batch, now=time.time()):
            return
        start_deployment_run(self._services, batch_id)
        self._back_off(batch_id, now=time.monotonic())

    def _back_off(self, batch_id: str, *, now: float) -> None:
        """Leave the batch to its run for a while; what was left long ago is forgotten."""
        previous = self._backoffs.get(batch_id)
        delay_s = MIN_BACKOFF_S if previous is None else min(2 * previous.delay_s, MAX_BACKOFF_S)
        recent = {
            other_id: backoff
            for other_id, backoff in self._backoffs.items()
            if now < backoff.until + MAX_BACKOFF_S
        }
        self._backoffs = {**recent, batch_id: _Backoff(delay_s, now + delay_s)}

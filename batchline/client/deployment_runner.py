"""Run batches on Prefect workers, as runs of the configured deployment, instead of in this process."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from batchline.client.client import Batchline
from batchline.engine.services import Services, open_services
from batchline.models.errors import BatchlineError, Conflict
from batchline.models.status import TERMINAL_STATUSES

log = logging.getLogger(__name__)

MIN_BACKOFF_S: Final = 30.0
MAX_BACKOFF_S: Final = 900.0
"""A started run gets `MIN_BACKOFF_S` to claim its batch, doubled each time up to this maximum."""


def client_for_server() -> Batchline:
    """Return a client whose batches run where the setting `serve_via` says."""
    services = open_services()
    if services.settings.serve_via == "process":
        return Batchline(services=services)
    return Batchline(services=services, runner=DeploymentRunner(services))


class _Backoff(NamedTuple):
    delay_s: float
    until: float


class DeploymentRunner:
    """Starts flow runs on its own thread, so that callers do not wait for Prefect.

    A batch that cannot be started because Prefect does not respond stays as it is until the next `start`.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deployment runner")
        self._lock = threading.Lock()
        self._queued_ids: set[str] = set()
        self._backoffs: dict[str, _Backoff] = {}
        self._has_failed = False

    def require_configured(self) -> None:
        """Raise `InvalidInput` if no Prefect server is configured."""
        from batchline.orchestration.run_needed import server_url  # noqa: PLC0415 - loads Prefect

        server_url("BATCHLINE_SERVE_VIA is deployment, and ", param="serve_via")

    def start(self, batch_id: str) -> None:
        """Queue the start of a run for the batch, unless one is queued already."""
        with self._lock:
            if batch_id in self._queued_ids:
                return
            try:
                self._thread.submit(self._start_queued, batch_id)
            except RuntimeError:
                raise Conflict("this client is closed; open another to run batches") from None
            self._queued_ids.add(batch_id)

    def is_running(self, batch_id: str) -> bool:
        """Return True if a run of the batch is queued, or was started less than its backoff ago."""
        backoff = self._backoffs.get(batch_id)
        return batch_id in self._queued_ids or (backoff is not None and time.monotonic() < backoff.until)

    def find_error(self, batch_id: str) -> BaseException | None:
        """Return None: the error of a run is in the state of its flow run."""
        del batch_id
        return None

    def close(self) -> None:
        """Stop starting runs; those started continue."""
        self._thread.shutdown(cancel_futures=True)

    def _start_queued(self, batch_id: str) -> None:
        try:
            self._start_run(batch_id)
            self._has_failed = False
        except BatchlineError as error:
            if not self._has_failed:  # log once per outage, not once per batch and round
                log.warning("%s; trying again until it succeeds", error)
            self._has_failed = True
        except Exception:
            log.exception("batch %s could not be started", batch_id)
        finally:
            with self._lock:
                self._queued_ids.discard(batch_id)

    def _start_run(self, batch_id: str) -> None:
        from batchline.orchestration.deployments import start_deployment_run  # noqa: PLC0415 - loads Prefect
        from batchline.orchestration.run_needed import needs_run  # noqa: PLC0415 - as above

        batch = self._services.records.get_batch(batch_id)
        if batch.status in TERMINAL_STATUSES or self._services.is_waiting(batch):
            return
        if not needs_run(batch, now=time.time()):
            return
        start_deployment_run(self._services, batch_id)
        now, previous = time.monotonic(), self._backoffs.get(batch_id)
        delay_s = MIN_BACKOFF_S if previous is None else min(2 * previous.delay_s, MAX_BACKOFF_S)
        recent = {  # without those that expired long ago
            other_id: backoff
            for other_id, backoff in self._backoffs.items()
            if now < backoff.until + MAX_BACKOFF_S
        }
        # A new dict: `is_running` reads it from other threads without the lock.
        self._backoffs = {**recent, batch_id: _Backoff(delay_s, now + delay_s)}

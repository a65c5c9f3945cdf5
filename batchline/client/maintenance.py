"""Maintain batches and storage while a server runs: resume orphaned batches, delete what is due."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from batchline.client.client import Batchline
from batchline.client.housekeeping import run_housekeeping
from batchline.client.pauses import SERVER_ORIGINS
from batchline.models.errors import BatchlineError, Conflict
from batchline.models.status import TERMINAL_STATUSES

log = logging.getLogger(__name__)

INTERVAL_S: Final = 15.0
HOUSEKEEPING_S: Final = 3_600.0
MAX_DELAY_S: Final = 900.0
"""Longest delay before a batch whose run keeps failing is started again."""

MAX_REMEMBERED_BATCHES: Final = 10_000
"""Maximum of batches remembered; entries of ended batches are never used again."""


@dataclass
class _StartHistory:
    count: int
    settled: int
    failed_at: float | None = None


class RestartBackoff:
    """Delays between the starts of a batch, which double while its runs settle no further request."""

    def __init__(self, first_delay_s: float) -> None:
        self._first_delay_s = first_delay_s
        self._histories: dict[str, _StartHistory] = {}

    def is_due(self, batch_id: str, settled: int) -> bool:
        """True if the batch, which no one runs at the moment, may be started."""
        history = self._histories.get(batch_id)
        if history is None:
            return True
        now = time.monotonic()
        if history.failed_at is None:
            history.failed_at = now
            if settled > history.settled:
                history.count = 1  # the last run made progress, so its failure is not the same one again
        return now - history.failed_at >= min(MAX_DELAY_S, self._first_delay_s * 2.0 ** (history.count - 1))

    def record_start(self, batch_id: str, settled: int) -> None:
        """Record a start of the batch, with `settled` requests settled before."""
        history = self._histories.pop(batch_id, None)
        self._histories[batch_id] = _StartHistory(1 if history is None else history.count + 1, settled)
        if len(self._histories) > MAX_REMEMBERED_BATCHES:
            # Dicts keep insertion order, so the first is the oldest.
            del self._histories[next(iter(self._histories))]


class MaintenanceThread:
    """Background thread that runs maintenance periodically until the block is left."""

    def __init__(self, client: Batchline, *, interval_s: float = INTERVAL_S) -> None:
        self._client = client
        self._interval_s = interval_s
        self._backoff = RestartBackoff(interval_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, name="keeper", daemon=True)

    def __enter__(self) -> MaintenanceThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run_loop(self) -> None:
        housekeeping_at = float("-inf")
        while True:
            try:
                resume_orphaned_batches(self._client, self._backoff)
                if time.monotonic() - housekeeping_at >= HOUSEKEEPING_S:
                    housekeeping_at = time.monotonic()
                    for _ in run_housekeeping(self._client, apply=True, resume=False):
                        if self._stopping.is_set():
                            return
            except (BatchlineError, OSError) as error:
                log.warning("maintenance was interrupted: %s", error)
            except Exception:  # the thread must survive any error
                log.exception("maintenance was interrupted")
            if self._stopping.wait(self._interval_s):
                return


def resume_orphaned_batches(client: Batchline, backoff: RestartBackoff | None = None) -> list[str]:
    """Start server batches that have not ended, have no runner and are due; return their ids."""
    lease_s, started = client.settings.lease_s, []
    batches = client.batches.records(active_first=True, limit=100)
    for batch in list(takewhile(lambda batch: batch.status not in TERMINAL_STATUSES, batches)):
        is_ours = batch.dwext is not None and batch.dwext.source in SERVER_ORIGINS
        if (
            not is_ours
            or client.services.is_waiting(batch)
            or batch.is_leased(now=client.services.records.now(), lease_s=lease_s)
            or client.runner.is_running(batch.id)
        ):
            continue
        settled, has_failed = batch.completed + batch.failed, client.runner.find_error(batch.id) is not None
        if backoff is not None and has_failed and not backoff.is_due(batch.id, settled):
            continue
        try:
            client.runner.start(batch.id)
        except Conflict:  # the client is closing
            break
        if backoff is not None:
            backoff.record_start(batch.id, settled)
        started.append(batch.id)
    return started

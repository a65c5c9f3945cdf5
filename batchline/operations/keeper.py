"""Looks after batches and storage while a server runs: what was left lying goes on, what is due is deleted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from batchline.models.errors import BatchlineError, Conflict
from batchline.models.status import TERMINAL
from batchline.operations.client import Batchline
from batchline.operations.housekeeping import housekeeping
from batchline.operations.restarts import Restarts
from batchline.storage.records import BatchRecord

log = logging.getLogger(__name__)

ROUND_S: Final = 15.0
HOUSEKEEPING_S: Final = 3_600.0
OWN: Final = frozenset({"api", "frontend"})
"""Where batches come from that a server runs; the others have runners of their own."""


class Keeper:
    """A thread that goes its rounds until the block is left."""

    def __init__(self, client: Batchline, *, round_s: float = ROUND_S) -> None:
        self._client = client
        self._round_s = round_s
        self._restarts = Restarts(round_s)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        cleaned_at = float("-inf")
        while True:
            try:
                go_on(self._client, self._restarts)
                if time.monotonic() - cleaned_at >= HOUSEKEEPING_S:
                    cleaned_at = time.monotonic()
                    self._clean()
            except (BatchlineError, OSError) as error:
                log.warning("a round of the keeper was cut short: %s", error)
            except Exception:  # the thread must outlive whatever one round meets
                log.exception("a round of the keeper was cut short")
            if self._over.wait(self._round_s):
                return

    def _clean(self) -> None:
        for _ in housekeeping(self._client, apply=True, resume=False):
            if self._over.is_set():
                return


def go_on(client: Batchline, restarts: Restarts | None = None) -> list[str]:
    """Start the batches of ours that are not over, that no one runs, and that are due; return their ids."""
    lease_s, started = client.engine.settings.lease_s, []
    for batch in list(_unfinished(client)):
        is_ours = batch.dwext is not None and batch.dwext.source in OWN
        if (
            not is_ours
            or batch.is_held(now=client.engine.records.now(), lease_s=lease_s)
            or client.runner.is_running(batch.id)
        ):
            continue
        settled, has_failed = batch.completed + batch.failed, client.runner.error_of(batch.id) is not None
        if restarts is not None and has_failed and not restarts.is_due(batch.id, settled):
            continue
        try:
            client.runner.start(batch.id)
        except Conflict:  # this client is being closed
            break
        if restarts is not None:
            restarts.started(batch.id, settled)
        started.append(batch.id)
    return started


def _unfinished(client: Batchline) -> Iterator[BatchRecord]:
    return takewhile(
        lambda batch: batch.status not in TERMINAL, client.batches.records(active_first=True, limit=100)
    )

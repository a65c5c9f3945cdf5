"""What sending a batch's chunks takes in a process, whether it has the batch's lease or joins the one that has."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from batchline.models.errors import InvalidInput, LeaseLost
from batchline.steps.engine import Engine
from batchline.storage.records import BatchRecord
from batchline.upstream.run import Run, Stop

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Between heartbeats, of which a short lease has four; a cancel takes effect within about two."""

HANGS_S = 5.0
"""Seconds for which the end of a run waits for its heartbeat."""

OPEN_HEAVY_CHUNKS = 2
"""Chunks with very long lines under way at once: while one waits for its last answers, another sends."""


class Sending:
    """A process's run of a batch, with what its chunks share."""

    without_upstream: ClassVar[str]
    """What is said of a model that no upstream serves."""

    def __init__(self, engine: Engine, batch: BatchRecord, *, sender: str, requests: int) -> None:
        settings = engine.settings
        self.engine = engine
        self.batch = batch
        self.sender = sender
        self.store = engine.store
        self.records = engine.records
        self.flush_interval_s = settings.flush_interval_s
        self.flush_bytes = settings.flush_bytes
        self.storage_is_proven = False
        self.heavy = threading.BoundedSemaphore(OPEN_HEAVY_CHUNKS)
        self.run: Run = engine.caller.open_run(
            batch.id,
            deadline=None if settings.run_past_window else batch.expires_at,
            refusals_to_stop=settings.refusals_to_stop,
            grace_s=settings.grace_s,
            requests=requests,
        )
        self._names: dict[str | None, str] = {}
        self._lost: LeaseLost | None = None
        self._beating_since: float | None = None
        self._beat_s = min(BEAT_S, settings.lease_s / 4)
        self._lock = threading.Lock()

    def upstream_of(self, model: str | None) -> str:
        """The name of the upstream that serves the model; raises `InvalidInput` if none does (any more)."""
        name = self._names.get(model)
        if name is None:
            upstream = self.engine.settings.upstream_for(model)
            if upstream is None:
                raise InvalidInput(self.without_upstream.format(model=model))
            name = self._names[model] = upstream.name
        return name

    def check(self) -> None:
        """Raise `LeaseLost` once another runner has the batch, or may have it."""
        since, half_s = self._beating_since, self.engine.settings.lease_s / 2
        if self._lost is None and since is not None and time.monotonic() - since > half_s:
            self._lose(LeaseLost(f"batch {self.batch.id}: the database has not answered for {half_s:.0f} s"))
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Note when a heartbeat begins, so that `check` notices one that never ends."""
        self._beating_since = time.monotonic()
        try:
            yield
        finally:
            self._beating_since = None

    def _lose(self, lost: LeaseLost) -> None:
        """Stop sending; requests in flight have the grace, and `check` raises from now on."""
        log.error("%s", lost)
        self._lost = lost
        self.run.stop(Stop(code=None, message=str(lost)))

    def _end_heartbeat(self, thread: threading.Thread) -> None:
        """Wait for the heartbeat's thread, but not for a database that does not answer."""
        thread.join(HANGS_S)
        if thread.is_alive():
            log.warning("batch %s: the heartbeat still waits for the database; it is left behind", self.batch.id)

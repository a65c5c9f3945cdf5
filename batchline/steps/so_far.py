"""Analytics of a batch that runs, over what is settled so far."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from batchline.models.analytics import BatchAnalytics
from batchline.steps.aggregate import aggregate
from batchline.steps.figures import Figures, table_of
from batchline.steps.merge import merged
from batchline.steps.parts import finished_keys, part_of, segments_of
from batchline.steps.plans import read_plan
from batchline.steps.spool import records_of

if TYPE_CHECKING:
    import pyarrow as pa

    from batchline.steps.engine import Engine
    from batchline.storage.records import BatchRecord

KEPT: Final = 1_000
LEAST_S: Final = 2.0
SHARE: Final = 5
"""A result is used again for that many times what it took to compute, and for `LEAST_S` at least."""


class AnalyticsSoFar:
    """Computes analytics of running batches, one at a time, and keeps them for a while; used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], tuple[float, BatchAnalytics]] = OrderedDict()

    def of(self, batch: BatchRecord) -> BatchAnalytics:
        """Return the batch's analytics; raises `NotFound` if it has ended meanwhile."""
        key = batch.id, batch.generation
        _, known = self._known.get(key, (0.0, None))
        # Whoever has an older result does not wait for a newer one.
        if not self._lock.acquire(blocking=known is None):
            return known or BatchAnalytics()
        try:
            valid_until, known = self._known.get(key, (0.0, None))
            if known is not None and time.monotonic() < valid_until:
                return known
            return self._computed(key, batch)
        finally:
            self._lock.release()

    def _computed(self, key: tuple[str, int], batch: BatchRecord) -> BatchAnalytics:
        began = time.monotonic()
        found, _ = aggregate(_tables(self._engine, batch), prices=self._engine.settings.prices)
        now = time.monotonic()
        self._known[key] = now + max(LEAST_S, SHARE * (now - began)), found
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found


def _tables(engine: Engine, batch: BatchRecord) -> Iterator[pa.Table]:
    """Figures of the finished chunks, over those of the generation before, and of what is saved of open ones."""
    store = engine.store
    done = finished_keys(store, batch.id, batch.generation)
    parts = [part_of(store, key) for key in done.values()]
    for some in merged(store, parts, batch.final_prefix):
        yield some.table
    for chunk in read_plan(store, batch).chunks:
        if chunk.index in done:
            continue
        saved: dict[int, Figures] = {}
        for _, segment in segments_of(store, batch.id, batch.generation, chunk.index):
            saved |= {figures.line: figures for figures, _ in records_of(segment)}
        if saved:
            nowhere = [0] * len(saved)
            yield table_of(list(saved.values()), offsets=nowhere, lengths=nowhere)

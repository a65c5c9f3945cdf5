"""Computes analytics of a running batch over the requests settled so far."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from batchline.analytics.request_metrics import RequestMetrics, build_table
from batchline.analytics.totals import compute_analytics
from batchline.models.analytics import BatchAnalytics
from batchline.steps.merge import merge_rows
from batchline.steps.parts import find_finished_keys, read_part, read_segments
from batchline.steps.plans import read_plan
from batchline.steps.spool import parse_segment_records

if TYPE_CHECKING:
    import pyarrow as pa

    from batchline.models.settings import ModelPrice
    from batchline.storage.objects.store import ObjectStore
    from batchline.storage.records.store import BatchRecord

MAX_CACHED: Final = 1_000
MIN_TTL_S: Final = 2.0
TTL_FACTOR: Final = 5
"""A result is reused for this many times its computing time, and for at least `MIN_TTL_S` seconds."""


class PartialAnalytics:
    """Computes analytics of running batches, one at a time, and caches them; thread-safe."""

    def __init__(self, store: ObjectStore, prices: Mapping[str, ModelPrice]) -> None:
        self._store = store
        self._prices = prices
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], tuple[float, BatchAnalytics]] = OrderedDict()

    def read(self, batch: BatchRecord) -> BatchAnalytics:
        """Return the batch's analytics; raises `NotFound` if it has ended meanwhile."""
        key = batch.id, batch.generation
        _, cached = self._cache.get(key, (0.0, None))
        # A caller that has a stale result does not wait for a new one.
        if not self._lock.acquire(blocking=cached is None):
            return cached or BatchAnalytics()
        try:
            # Again under the lock: another thread may have computed it while this one waited.
            valid_until, cached = self._cache.get(key, (0.0, None))
            if cached is not None and time.monotonic() < valid_until:
                return cached
            started_at = time.monotonic()
            analytics, _ = compute_analytics(_metrics_tables(self._store, batch), prices=self._prices)
            now = time.monotonic()
            self._cache[key] = now + max(MIN_TTL_S, TTL_FACTOR * (now - started_at)), analytics
            self._cache.move_to_end(key)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return analytics
        finally:
            self._lock.release()


def _metrics_tables(store: ObjectStore, batch: BatchRecord) -> Iterator[pa.Table]:
    """Yield the metrics of finished chunks, merged over the generation before, then of the saved segments."""
    finished = find_finished_keys(store, batch.id, batch.generation)
    parts = [read_part(store, key) for key in finished.values()]
    for block in merge_rows(store, parts, batch.final_prefix):
        yield block.table
    for chunk in read_plan(store, batch).chunks:
        if chunk.index in finished:
            continue
        saved: dict[int, RequestMetrics] = {}
        for _, segment in read_segments(store, batch.id, batch.generation, chunk.index):
            saved |= {metrics.line: metrics for metrics, _ in parse_segment_records(segment)}
        if saved:
            zeros = [0] * len(saved)
            yield build_table(list(saved.values()), offsets=zeros, lengths=zeros)

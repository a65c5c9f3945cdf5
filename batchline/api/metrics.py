"""Figures for Prometheus: of all batches on record, and of what this process has sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from batchline.operations import Batchline
from batchline.upstream.tally import BOUNDS_S, Spread, Tally

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST


def metrics_of(client: Batchline) -> bytes:
    """The figures as text; raises `StorageFault` where the database does not answer."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(client))
    return generate_latest(registry)


class _Figures(Collector):
    """What is known at the moment."""

    def __init__(self, client: Batchline) -> None:
        self._client = client

    def describe(self) -> list[Metric]:
        """Nothing, so that it is not asked before its time."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        overview = self._client.engine.records.overview
        batches = GaugeMetricFamily("batchline_batches", "Batches on record.", labels=["status"])
        for status, count in overview.states().items():
            batches.add_metric([status], count)
        yield batches
        oldest = overview.oldest_waiting_at()
        waited_s = 0.0 if oldest is None else max(0.0, time.time() - oldest)
        yield GaugeMetricFamily("batchline_queue_age_seconds", "Age of the oldest waiting batch.", waited_s)
        caller = self._client.engine.started_caller
        in_flight = 0 if caller is None else caller.in_flight
        yield GaugeMetricFamily("batchline_requests_in_flight", "Requests under way in this process.", in_flight)
        yield from _sent(Tally() if caller is None else caller.tally)


def _sent(tally: Tally) -> Iterator[Metric]:
    """What was sent and came back since the process began."""
    requests = CounterMetricFamily("batchline_requests", "Requests settled by this process.", labels=["outcome"])
    for outcome, count in {"completed": 0, **tally.outcomes}.items():
        requests.add_metric([outcome], count)
    yield requests
    tokens = CounterMetricFamily("batchline_tokens", "Tokens of answers to this process.", labels=["kind"])
    tokens.add_metric(["prompt"], tally.prompt_tokens)
    tokens.add_metric(["completion"], tally.completion_tokens)
    yield tokens
    yield _histogram("batchline_request_duration_seconds", "Final attempts, from start to end.", tally.duration)
    yield _histogram("batchline_request_first_byte_seconds", "Final attempts, to first byte.", tally.first_byte)


def _histogram(name: str, description: str, spread: Spread) -> Metric:
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    buckets = [*zip(bounds, map(float, accumulate(spread.counts)), strict=True)]
    return HistogramMetricFamily(name, description, buckets=buckets, sum_value=spread.sum_s)

"""Prometheus metrics of all recorded batches and of the requests sent by this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from batchline.client import Batchline
from batchline.upstream.call_metrics import BUCKET_BOUNDS_S, CallMetrics, DurationHistogram

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST


def render_metrics(client: Batchline) -> bytes:
    """Return the metrics as text; raises `StorageFault` if the database does not respond."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MetricsCollector(client))
    return generate_latest(registry)


class _MetricsCollector(Collector):
    """Collects the current values."""

    def __init__(self, client: Batchline) -> None:
        self._client = client

    def describe(self) -> list[Metric]:
        """Return nothing, so that registration does not query the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        batch_counts = self._client.services.records.batch_counts
        batches = GaugeMetricFamily("batchline_batches", "Batches on record.", labels=["status"])
        for status, count in batch_counts.count_by_status().items():
            batches.add_metric([status], count)
        yield batches
        oldest_waiting_at = batch_counts.oldest_waiting_at()
        waited_s = 0.0 if oldest_waiting_at is None else max(0.0, time.time() - oldest_waiting_at)
        yield GaugeMetricFamily("batchline_queue_age_seconds", "Age of the oldest waiting batch.", waited_s)
        dispatcher = self._client.services.started_dispatcher
        in_flight = 0 if dispatcher is None else dispatcher.in_flight
        yield GaugeMetricFamily("batchline_requests_in_flight", "Requests under way in this process.", in_flight)
        yield from _call_metrics(CallMetrics() if dispatcher is None else dispatcher.metrics)


def _call_metrics(call_metrics: CallMetrics) -> Iterator[Metric]:
    """Yield metrics of the calls since the process started."""
    requests = CounterMetricFamily("batchline_requests", "Requests settled by this process.", labels=["outcome"])
    # A series that starts at 0 lets `rate()` see the first request.
    for outcome, count in {"completed": 0, **call_metrics.outcomes}.items():
        requests.add_metric([outcome], count)
    yield requests
    tokens = CounterMetricFamily("batchline_tokens", "Tokens of answers to this process.", labels=["kind"])
    tokens.add_metric(["prompt"], call_metrics.prompt_tokens)
    tokens.add_metric(["completion"], call_metrics.completion_tokens)
    yield tokens
    yield _histogram_metric(
        "batchline_request_duration_seconds", "Final attempts, from start to end.", call_metrics.duration
    )
    yield _histogram_metric(
        "batchline_request_first_byte_seconds", "Final attempts, to first byte.", call_metrics.time_to_first_byte
    )


def _histogram_metric(name: str, description: str, histogram: DurationHistogram) -> Metric:
    bounds = [*map(str, BUCKET_BOUNDS_S), "+Inf"]
    buckets = [*zip(bounds, map(float, accumulate(histogram.counts)), strict=True)]
    return HistogramMetricFamily(name, description, buckets=buckets, sum_value=histogram.sum_s)

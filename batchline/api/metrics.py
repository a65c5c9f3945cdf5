"""Prometheus metrics of all recorded batches and of the requests sent by this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from batchline.client import Batchline

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST


def render_metrics(client: Batchline) -> bytes:
    """Return the metrics as text; raises `StorageFault` if the database does not respond."""
    return generate_latest(_MetricsCollector(client))


class _MetricsCollector(Collector):
    """Collects the current values."""

    def __init__(self, client: Batchline) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        by_status, queue_age_s, in_flight, calls = self._client.metrics()
        batches = GaugeMetricFamily("batchline_batches", "Recorded batches.", labels=["status"])
        for status, count in by_status.items():
            batches.add_metric([status], count)
        yield batches
        yield GaugeMetricFamily("batchline_queue_age_seconds", "Age of the oldest waiting batch.", queue_age_s)
        yield GaugeMetricFamily("batchline_requests_in_flight", "Requests in flight in this process.", in_flight)
        requests = CounterMetricFamily(
            "batchline_requests", "Requests that this process settled.", labels=["outcome"]
        )
        # A series that starts at 0 lets `rate()` see the first request.
        for outcome, count in {"completed": 0, **calls.outcomes}.items():
            requests.add_metric([outcome], count)
        yield requests
        tokens = CounterMetricFamily("batchline_tokens", "Tokens of answers to this process.", labels=["kind"])
        tokens.add_metric(["prompt"], calls.prompt_tokens)
        tokens.add_metric(["completion"], calls.completion_tokens)
        yield tokens
        for name, description, histogram in (
            ("duration", "Final attempts, from start to end.", calls.duration),
            ("first_byte", "Final attempts, to first byte.", calls.time_to_first_byte),
        ):
            yield HistogramMetricFamily(
                f"batchline_request_{name}_seconds",
                description,
                buckets=histogram.cumulative_counts(),
                sum_value=histogram.sum_s,
            )

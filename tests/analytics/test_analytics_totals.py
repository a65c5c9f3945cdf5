"""Analytics and report of some rows, against sums that plain Python makes of the same rows."""

import math
import statistics
from collections import Counter
from decimal import Decimal, localcontext

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.metrics_rows import failed_row, make_table, make_tables, metrics_rows, ok_row
from hypothesis import given, settings

from batchline.analytics import totals as aggregating
from batchline.analytics.request_metrics import RequestMetrics, to_metrics_schema
from batchline.analytics.totals import compute_analytics
from batchline.models.analytics import BatchReport
from batchline.models.settings import ModelPrice

OWN = {
    model: ModelPrice(input="0.1", output="2", cached_input="0.01", cache_write="0.125", reasoning="3.3")
    for model in ("own", "gpt-4o-mini", "claude-sonnet-4-5", "deepseek-chat", "nobody's", "")
}
"""Prices for every model that the rows may name, so that no price list decides."""

some_rows = st.lists(metrics_rows(), max_size=40)
few = settings(max_examples=40, deadline=None)
stretches = st.sampled_from([1, 7, 65_536])


def of(rows: list[RequestMetrics], *, prices=OWN, size: int = 11):
    return compute_analytics(make_tables(rows, size), prices=prices)


@pytest.fixture(autouse=True)
def _cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce few rows at a time, so that several stretches meet."""
    monkeypatch.setattr(aggregating, "ROWS_PER_FRAME", 16)


def summed(rows: list[RequestMetrics], name: str) -> int:
    return sum(getattr(row, name) or 0 for row in rows)


def known(rows: list[RequestMetrics], name: str) -> list[float]:
    return [getattr(row, name) for row in rows if getattr(row, name) is not None]


@few
@given(some_rows)
def test_analytics_are_sums_and_means_of_completed_requests(rows) -> None:
    analytics, _ = of(rows)

    good = [row for row in rows if row.ok]
    assert analytics.total_requests == len(good)
    assert analytics.total_prompt_tokens == summed(good, "prompt_tokens")
    assert analytics.total_completion_tokens == summed(good, "completion_tokens")
    assert analytics.total_tokens == summed(good, "total_tokens")
    reasoning = known(good, "reasoning_tokens")
    assert analytics.total_reasoning_tokens == (sum(reasoning) if reasoning else None)
    cached = known(good, "cached_tokens")
    assert analytics.total_cached_tokens == (sum(cached) if cached else None)
    for mean, name in ((analytics.avg_duration_ms, "duration_ms"), (analytics.avg_ttfb_ms, "ttfb_ms")):
        values = known(good, name)
        assert mean == (pytest.approx(statistics.fmean(values), rel=1e-9) if values else None)


def own_cost(rows: list[RequestMetrics]) -> Decimal:
    """Return what the rows cost at `OWN`, each by itself."""
    result = Decimal(0)
    for row in rows:
        if row.total_tokens is None:
            continue
        output = max(row.completion_tokens, row.total_tokens - row.prompt_tokens if row.prompt_tokens else 0)
        reasoning = min(row.reasoning_tokens or 0, output)
        fresh = row.prompt_tokens - row.cached_tokens - row.cache_write_tokens
        result += fresh * Decimal("0.1") + row.cached_tokens * Decimal("0.01")
        result += row.cache_write_tokens * Decimal("0.125")
        result += (output - reasoning) * 2 + reasoning * Decimal("3.3")
    return result / 1_000_000


@few
@given(some_rows)
def test_total_cost_is_exact(rows) -> None:
    analytics, report = of(rows)

    good = [row for row in rows if row.ok]
    with localcontext(prec=100):
        expected = own_cost(good)
        assert (analytics.total_cost is None) == (not good)
        assert Decimal(analytics.total_cost or 0) == expected
        assert sum((Decimal(model.cost or 0) for model in report.models), Decimal(0)) == expected


@few
@given(some_rows)
def test_requests_are_counted_once_by_model_code_and_attempts(rows) -> None:
    _, report = of(rows)

    bad = [row for row in rows if not row.ok]
    failed_row = [row for row in bad if row.is_failed]
    assert (report.total, report.completed, report.failed) == (len(rows), len(rows) - len(bad), len(failed_row))
    codes = Counter(row.error_code for row in bad)
    assert (report.expired, report.cancelled) == (codes["batch_expired"], codes["batch_cancelled"])
    by_model = Counter((row.model or "", row.ok) for row in rows if row.ok or row.is_failed)
    assert {model.model: (model.completed, model.failed) for model in report.models} == {
        name: (by_model[name, True], by_model[name, False]) for name in {row.model or "" for row in rows}
    }
    assert report.failures == Counter(row.error_code for row in bad)
    pairs = Counter((row.error_code, row.status_code or 0) for row in bad)
    told = {(code, status): n for code, some in report.failure_statuses.items() for status, n in some.items()}
    assert told == pairs
    assert report.requests_by_attempts == Counter(row.attempts for row in rows)
    assert report.attempts == sum(row.attempts for row in rows)
    assert report.retries == Counter(reason for row in rows for reason in row.retries.split(",") if reason)
    assert report.wasted_tokens == summed(rows, "wasted_tokens")


@few
@given(some_rows)
def test_percentiles_match_numpy_over_all_durations(rows) -> None:
    _, report = of(rows)

    good = [row for row in rows if row.ok]
    some = (
        (report.duration_ms, known(good, "duration_ms")),
        (report.ttfb_ms, known(good, "ttfb_ms")),
        (report.queue_ms, known(rows, "queued_ms")),
        *(
            (model.duration_ms, known([row for row in good if (row.model or "") == model.model], "duration_ms"))
            for model in report.models
        ),
    )
    for points, values in some:
        if not values:
            assert points is None
            continue
        expected = np.percentile(values, [50, 90, 95, 99, 100])
        assert list(points.model_dump().values()) == pytest.approx(list(expected), rel=1e-5)


@few
@given(some_rows)
def test_histogram_counts_each_duration_in_its_bin(rows) -> None:
    _, report = of(rows)

    timed = [row for row in rows if row.duration_ms is not None]
    for at, each in enumerate(report.durations):
        inside = [row.ok for row in timed if each.from_ms <= row.duration_ms < each.to_ms]
        assert (each.completed, each.failed) == (sum(inside), len(inside) - sum(inside))
        assert at == 0 or each.from_ms == report.durations[at - 1].to_ms
    assert sum(each.completed + each.failed for each in report.durations) == len(timed)


def overlap_s(row: RequestMetrics, start: float, end: float) -> float:
    return max(0.0, min(end, row.started_at + row.duration_ms / 1e3) - max(start, row.started_at))


@few
@given(some_rows)
def test_timeline_points_count_ended_requests_and_mean_in_flight(rows) -> None:
    _, report = of(rows)

    placed = [row for row in rows if row.started_at is not None and row.duration_ms is not None]
    width = report.interval_s
    ended = Counter((math.floor((row.started_at + row.duration_ms / 1e3) / width), row.ok) for row in placed)
    tokens = Counter()
    for row in placed:
        if row.ok:
            tokens[math.floor((row.started_at + row.duration_ms / 1e3) / width)] += row.total_tokens or 0
    assert len(report.throughput) <= 240
    assert sum(point.requests + point.failed for point in report.throughput) == len(placed)
    for point in report.throughput:
        slot = round(point.at / width)
        assert (point.requests, point.failed) == (ended[slot, True], ended[slot, False])
        assert point.tokens == tokens[slot]
        under_way = sum(overlap_s(row, point.at, point.at + width) for row in placed) / width
        assert point.in_flight == pytest.approx(under_way, abs=0.01)


@few
@given(some_rows, stretches)
def test_analytics_do_not_depend_on_table_sizes(rows, size) -> None:
    one, many = of(rows, size=10_000), of(rows, size=size)

    for left, right in zip(one, many, strict=True):
        # Sums of floats depend on their order in the last digits.
        assert _rounded(left.model_dump()) == _rounded(right.model_dump())


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < 1e9 else round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


@few
@given(some_rows)
def test_report_json_round_trip_keeps_every_field(rows) -> None:
    _, report = of(rows)

    assert BatchReport.model_validate_json(report.model_dump_json()) == report


def test_report_counts_finish_reasons_and_marks_of_completed_requests() -> None:
    rows = [
        *(ok_row() for _ in range(3)),
        *(ok_row(finish_reason="length", mark="truncated") for _ in range(2)),
        ok_row(mark="invalid_output"),
        ok_row(finish_reason=None),
        failed_row(finish_reason="content_filter"),
    ]

    _, report = compute_analytics(make_tables(rows, 3), prices={})

    assert report.finish_reasons == {"stop": 4, "length": 2}
    assert report.marks == {"truncated": 2, "invalid_output": 1}
    assert (report.completed, report.failed) == (7, 1)


def test_analytics_of_tables_of_an_earlier_version_have_no_marks() -> None:
    table = make_table([ok_row(), failed_row()]).drop_columns(["finish_reason", "mark"])

    _, report = compute_analytics([to_metrics_schema(table)], prices={})

    assert (report.completed, report.finish_reasons, report.marks) == (1, {}, {})


def test_analytics_without_rows_are_zero() -> None:
    analytics, report = compute_analytics([], prices={})

    assert analytics.model_dump() == {
        "total_requests": 0,
        "total_prompt_tokens": 0,
        "total_completion_tokens": 0,
        "total_tokens": 0,
    }
    assert (report.total, report.durations, report.throughput, report.models) == (0, [], [], [])


def test_analytics_of_failures_only_have_histogram_but_no_means_or_cost() -> None:
    analytics, report = of([failed_row(), failed_row(duration_ms=None, started_at=None, status_code=None)])

    assert (analytics.total_requests, analytics.avg_duration_ms, analytics.total_cost) == (0, None, None)
    assert report.duration_ms is None
    assert sum(each.failed for each in report.durations) == 1
    assert report.failure_statuses == {"invalid_request": {400: 1, 0: 1}}


def test_token_sums_beyond_float_precision_are_exact() -> None:
    most = 2**53 - 1
    rows = [ok_row(prompt_tokens=most, total_tokens=most, completion_tokens=0) for _ in range(1_500)]
    rows.append(ok_row(prompt_tokens=1, total_tokens=1, completion_tokens=0, reasoning_tokens=1))

    analytics, report = of(rows)

    assert analytics.total_prompt_tokens == analytics.total_tokens == 1_500 * most + 1
    assert report.models[0].prompt_tokens == 1_500 * most + 1


def test_results_without_usage_are_counted_separately() -> None:
    nothing = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None, "cached_tokens": None}
    only_total = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 9}
    none_used = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    _, report = of([ok_row(), ok_row(**nothing), ok_row(**only_total), ok_row(**none_used)])

    assert (report.without_usage, report.models[0].without_usage) == (2, 2)


def test_timeline_with_long_span_widens_its_interval() -> None:
    week_s = 7 * 86_400
    _, report = of([ok_row(started_at=1_790_000_000.0 + each * week_s / 50) for each in range(51)])

    assert (report.interval_s, len(report.throughput)) == (3_600.0, 169)
    assert report.first_started_at == 1_790_000_000.0
    assert report.last_ended_at == pytest.approx(1_790_000_000.4 + week_s)


def test_rates_are_measured_from_first_start_to_last_end() -> None:
    rows = [ok_row(started_at=1_790_000_000.0 + at, duration_ms=1_000.0) for at in range(10)]

    _, report = of(rows)

    assert report.requests_per_s == pytest.approx(1.0)
    assert report.tokens_per_s == pytest.approx(150.0)
    assert report.completion_tokens_per_s == pytest.approx(50.0)
    assert report.models[0].completion_tokens_per_s == pytest.approx(50.0)


OLD_REPORT = """{"duration_ms":{"p50":401.5,"p90":883.0,"p95":1090.0,"p99":1660.0,"max":2140.0},"ttfb_ms":null,
"queue_ms":null,"attempts":220,"retries":{},"failures":{},"models":[{"model":"gpt-4o-mini","requests":120,
"completed":120,"failed":0,"prompt_tokens":5000,"completion_tokens":6000,"reasoning_tokens":0,"cached_tokens":0,
"total_tokens":11000,"avg_duration_ms":450.5,"cost":"0.00435"}],"interval_s":1.0,
"throughput":[{"at":1790000000.0,"requests":120,"tokens":11000}],"wasted_tokens":0,"unpriced_models":["own"]}"""


def test_report_of_earlier_version_is_readable() -> None:
    report = BatchReport.model_validate_json(OLD_REPORT)

    assert (report.attempts, report.total, report.durations) == (220, None, [])
    assert (report.throughput[0].in_flight, report.models[0].price_source) == (None, None)


def test_model_percentiles_are_kept_for_at_most_100_models() -> None:
    rows = [ok_row(model=f"model-{at % 150}", duration_ms=float(at)) for at in range(600)]

    _, report = compute_analytics([make_table(rows)], prices={})

    assert len(report.models) == 150
    assert sum(model.duration_ms is not None for model in report.models) == 100

"""Aggregates a batch's request metrics into its analytics and report with pandas, a block of rows at a time.

Between blocks it keeps sums, a 32-bit array for each kind of duration, and one for the models: about 16 MB per
million requests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from batchline.analytics.costs import CostAccumulator
from batchline.analytics.exact_sum import exact_sums, to_int64
from batchline.analytics.latency import Distribution, GroupedDistribution, LatencyHistogram
from batchline.analytics.prices import PriceBook, format_cost, sum_exact
from batchline.analytics.timeline import Timeline
from batchline.models.analytics import BatchAnalytics, BatchReport, ModelMetrics
from batchline.models.error_codes import UNANSWERED_CODES, ErrorCode
from batchline.models.settings import ModelPrice

ROWS_PER_FRAME = 16_384

TOKEN_COLUMNS = (
    *("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens", "cache_write_tokens"),
    "total_tokens",
)
OPTIONAL_TOKEN_COLUMNS = ("reasoning_tokens", "cached_tokens")
"""Columns that some servers never report; their totals are then absent instead of 0."""

TIME_COLUMNS = ("duration_ms", "ttfb_ms", "queued_ms")
COLUMNS = (
    *("ok", "model", "status_code", "error_code", "attempts", "retries", *TOKEN_COLUMNS, "wasted_tokens"),
    *("started_at", *TIME_COLUMNS, "finish_reason", "mark"),
)


def compute_analytics(
    tables: Iterable[pa.Table], *, prices: Mapping[str, ModelPrice] | PriceBook
) -> tuple[BatchAnalytics, BatchReport]:
    """Return analytics of the completed requests and the report on all, from tables with `metrics_schema()`."""
    totals, pending, rows = AnalyticsTotals(prices), [], 0
    for table in tables:
        # Several small tables at a time.
        pending.append(table.select(list(COLUMNS)))
        rows += table.num_rows
        if rows >= ROWS_PER_FRAME:
            totals.add(_to_frame(pending))
            pending, rows = [], 0
    if pending:
        totals.add(_to_frame(pending))
    return totals.analytics(), totals.report()


def _to_frame(tables: list[pa.Table]) -> pd.DataFrame:

    # By default pandas turns integers with nulls into floats, which round those above 2^53.
    exact_types = {pa.int64(): pd.Int64Dtype()}
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas(types_mapper=exact_types.get)
    return frame


class AnalyticsTotals:
    """Running totals over the rows added so far."""

    def __init__(self, prices: Mapping[str, ModelPrice] | PriceBook) -> None:
        self._book = prices if isinstance(prices, PriceBook) else PriceBook(prices)
        self._retry_reasons: Counter[str] = Counter()
        self._requests_by_attempts: Counter[int] = Counter()
        self._failures: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._answer_counts: dict[str, Counter[str]] = {"finish_reason": Counter(), "mark": Counter()}
        self._reported_columns: set[str] = set()
        self._model_numbers: dict[str, int] = {}
        self._sums_by_model: dict[str, Counter[int]] = defaultdict(Counter)
        self._durations = GroupedDistribution()
        self._distributions = {
            "duration_ms": self._durations,
            "ttfb_ms": Distribution(),
            "queued_ms": Distribution(),
        }
        self._duration_ms_by_model: defaultdict[int, float] = defaultdict(float)
        self._histogram = LatencyHistogram()
        self._timeline = Timeline()
        self._costs = CostAccumulator(self._book)

    def add(self, frame: pd.DataFrame) -> None:
        """Add rows."""
        models = self._number_models(frame["model"])
        ok = frame["ok"].to_numpy("bool")
        completed = frame[ok]
        self._reported_columns |= {name for name in OPTIONAL_TOKEN_COLUMNS if completed[name].notna().any()}
        for attempts, count in frame["attempts"].value_counts().items():
            self._requests_by_attempts[int(str(attempts))] += int(count)
        for reasons, count in frame["retries"].value_counts().items():
            for reason in filter(None, str(reasons).split(",")):
                self._retry_reasons[reason] += int(count)
        for name, answer_counts in self._answer_counts.items():
            # `value_counts` of a dictionary column has an entry for each value that only other rows have.
            values = completed[name].value_counts().items()
            answer_counts.update({str(value): int(count) for value, count in values if count})
        failed = frame[~ok]
        statuses = failed["status_code"].fillna(0).astype("int64")
        counts = statuses.groupby(failed["error_code"], observed=True).value_counts()
        for code, status, count in counts.reset_index().itertuples(index=False):
            self._failures[str(code)][int(status)] += int(count)
        self._add_models(frame, completed, models, ok)
        self._add_times(frame, models, ok)
        self._costs.add(completed, models[ok], list(self._model_numbers))

    def _number_models(self, models: pd.Series[str]) -> np.ndarray:
        """Return the number of each row's model; a null is the model with an empty name."""
        indexes, names = models.factorize(use_na_sentinel=True)
        # The last entry is for nulls, which factorize() gives the index -1.
        known = self._model_numbers
        numbers = [known.setdefault(str(name), len(known)) for name in names]
        numbers.append(known.setdefault("", len(known)) if (indexes < 0).any() else -1)
        numbered: np.ndarray = np.array(numbers, "int64")[indexes]
        return numbered

    def _add_models(
        self, frame: pd.DataFrame, completed: pd.DataFrame, models: np.ndarray, ok: np.ndarray
    ) -> None:
        self._add_sums("requests", models, models >= 0)
        self._add_sums("completed", models, ok)
        self._add_sums("unanswered", models, frame["error_code"].isin(UNANSWERED_CODES).to_numpy("bool"))
        self._add_sums("wasted_tokens", models, to_int64(frame["wasted_tokens"]))
        for name in TOKEN_COLUMNS:
            self._add_sums(name, models[ok], to_int64(completed[name]))
        total_tokens = completed["total_tokens"]
        known_tokens = to_int64(completed["prompt_tokens"]) + to_int64(completed["completion_tokens"])
        # A total alone does not say which kinds of tokens it counts.
        without_usage = (known_tokens == 0) & (total_tokens.isna().to_numpy() | (to_int64(total_tokens) > 0))
        self._add_sums("without_usage", models[ok], without_usage)

    def _add_sums(self, name: str, models: np.ndarray, values: np.ndarray) -> None:
        """Add the values to the sums of that name, by model."""
        sums = exact_sums(models, values.astype("int64"), len(self._model_numbers))
        self._sums_by_model[name].update({number: value for number, value in enumerate(sums) if value})

    def _add_times(self, frame: pd.DataFrame, models: np.ndarray, ok: np.ndarray) -> None:

        duration_ms, ttfb_ms, queued_ms = (frame[name].to_numpy("float64") for name in TIME_COLUMNS)
        self._durations.add_grouped(duration_ms[ok], models[ok])
        self._distributions["ttfb_ms"].add(ttfb_ms[ok])
        self._distributions["queued_ms"].add(queued_ms)
        self._histogram.add(duration_ms, ok)
        # Completed requests with a duration give the generation speed of their model.
        is_timed = ok & ~np.isnan(duration_ms)
        timed_models = models[is_timed]
        self._add_sums("timed", timed_models, is_timed[is_timed])
        self._add_sums("timed_tokens", timed_models, to_int64(frame["completion_tokens"])[is_timed])
        for number, total_ms in enumerate(np.bincount(timed_models, weights=duration_ms[is_timed]).tolist()):
            self._duration_ms_by_model[number] += total_ms
        started_at = frame["started_at"].to_numpy("float64")
        ended_at = started_at + np.maximum(duration_ms, 0.0) / 1e3
        # Requests that were never sent have no times.
        is_known = ~np.isnan(ended_at)
        tokens = to_int64(frame["total_tokens"])
        self._timeline.add(started_at[is_known], ended_at[is_known], ok[is_known], tokens[is_known])

    def _sum_of(self, name: str) -> int:
        return sum(self._sums_by_model[name].values())

    def analytics(self) -> BatchAnalytics:
        """Return the analytics."""
        return BatchAnalytics(
            total_requests=self._sum_of("completed"),
            total_prompt_tokens=self._sum_of("prompt_tokens"),
            total_completion_tokens=self._sum_of("completion_tokens"),
            **{f"total_{name}": self._sum_of(name) for name in self._reported_columns},
            total_tokens=self._sum_of("total_tokens"),
            avg_duration_ms=self._distributions["duration_ms"].mean(),
            avg_ttfb_ms=self._distributions["ttfb_ms"].mean(),
            # A sum without an unpriced model would be taken for the total; the report has it as `known_cost`.
            total_cost=_total_cost(self._costs.costs().values()),
        )

    def report(self) -> BatchReport:
        """Return the detailed report."""
        costs, names = self._costs.costs(), list(self._model_numbers)
        known_cost = _total_cost([cost for cost in costs.values() if cost is not None])
        wasted_tokens = self._sums_by_model["wasted_tokens"].items()
        failures = sorted(self._failures.items(), key=lambda item: (-item[1].total(), item[0]))
        expired, cancelled = (
            self._failures[code].total() if code in self._failures else 0
            for code in (ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED)
        )
        return BatchReport(
            total=self._sum_of("requests"),
            completed=self._sum_of("completed"),
            failed=self._sum_of("requests") - self._sum_of("completed") - expired - cancelled,
            expired=expired,
            cancelled=cancelled,
            **{name: self._distributions[column].percentiles() for name, column in PERCENTILE_COLUMNS.items()},
            durations=self._histogram.bins(),
            attempts=sum(attempts * count for attempts, count in self._requests_by_attempts.items()),
            retries=dict(self._retry_reasons.most_common()),
            requests_by_attempts=dict(sorted(self._requests_by_attempts.items())),
            failures={code: statuses.total() for code, statuses in failures},
            failure_statuses={code: dict(statuses.most_common()) for code, statuses in failures},
            finish_reasons=dict(self._answer_counts["finish_reason"].most_common()),
            marks=dict(self._answer_counts["mark"].most_common()),
            models=self._model_metrics(costs),
            **self._time_fields(),
            without_usage=self._sum_of("without_usage"),
            wasted_tokens=self._sum_of("wasted_tokens"),
            wasted_cost_at_most=_total_cost(
                [self._costs.max_cost(names[number], tokens) for number, tokens in wasted_tokens]
            ),
            known_cost=known_cost,
            unpriced_models=sorted(names[number] for number, cost in costs.items() if cost is None),
            currency=None if known_cost is None else self._costs.currency(),
            price_list=self._book.version if costs else None,
        )

    def _model_metrics(self, costs: Mapping[int, Decimal | None]) -> list[ModelMetrics]:
        """Return the metrics of each model, sorted by name."""
        percentiles, models = self._durations.percentiles_by_group(), []
        for name, number in sorted(self._model_numbers.items()):
            counts = {column: self._sums_by_model[column][number] for column in SUMMED_COLUMNS}
            timed, total_ms = self._sums_by_model["timed"][number], self._duration_ms_by_model[number]
            cost = costs.get(number)
            models.append(
                ModelMetrics(
                    model=name,
                    failed=counts["requests"] - counts["completed"] - self._sums_by_model["unanswered"][number],
                    **counts,
                    avg_duration_ms=total_ms / timed if timed else None,
                    duration_ms=percentiles.get(number),
                    completion_tokens_per_s=_rate_per_s(
                        self._sums_by_model["timed_tokens"][number], total_ms / 1e3
                    ),
                    cost=None if cost is None else format_cost(cost),
                    price_source=self._costs.price_source(number),
                )
            )
        return models

    def _time_fields(self) -> dict[str, Any]:
        """Return the report's fields about time of day and rates."""
        first_at, last_at = self._timeline.first_s, self._timeline.last_s
        points = self._timeline.points()
        span_s = 0.0 if first_at is None or last_at is None else last_at - first_at
        counts = {
            "requests_per_s": self._sum_of("completed"),
            "tokens_per_s": self._sum_of("total_tokens"),
            "completion_tokens_per_s": self._sum_of("completion_tokens"),
        }
        return {
            "interval_s": self._timeline.width_s if points else 0.0,
            "throughput": points,
            "first_started_at": first_at,
            "last_ended_at": last_at,
            **{name: _rate_per_s(count, span_s) for name, count in counts.items()},
        }


def _total_cost(costs: Collection[Decimal | None]) -> str | None:
    """Return the sum of the costs, or None if there are none or one is unknown."""
    known_costs = [cost for cost in costs if cost is not None]
    return format_cost(sum_exact(known_costs)) if known_costs and len(known_costs) == len(costs) else None


def _rate_per_s(count: int, span_s: float) -> float | None:
    """Return the rate per second, or None if the time is too short to measure."""
    return count / span_s if span_s > 1e-6 else None


PERCENTILE_COLUMNS = {"duration_ms": "duration_ms", "ttfb_ms": "ttfb_ms", "queue_ms": "queued_ms"}
SUMMED_COLUMNS = ("requests", "completed", *TOKEN_COLUMNS, "wasted_tokens", "without_usage")

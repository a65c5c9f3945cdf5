"""Reduces a batch's parts to its analytics and its report, a stretch of parts at a time with pandas.

What is kept between stretches is sums and one array of floats for each distribution: some 24 MB for a million
requests, whatever the answers' size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from batchline.models.analytics import (
    BatchAnalytics,
    BatchReport,
    ModelFigures,
    Percentiles,
    ThroughputPoint,
)
from batchline.models.settings import ModelPrice
from batchline.steps.prices import TokenCounts, as_text, cost_of, total_cost

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

ROWS_AT_ONCE = 65_536
POINTS = 120
"""About how many points the throughput over time has."""

Sums = defaultdict[str, float]

TOKENS = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens", "total_tokens")
TIMES = ("duration_ms", "ttfb_ms", "queued_ms")


def aggregate(
    tables: Iterable[pa.Table], *, prices: Mapping[str, ModelPrice]
) -> tuple[BatchAnalytics, BatchReport]:
    """Analytics over the completed requests, and the report over all, of tables with `schema()`'s columns."""
    totals = _Totals()
    for frame in _frames(tables):
        totals.add(frame)
    return totals.analytics(prices), totals.report(prices)


def _frames(tables: Iterable[pa.Table]) -> Iterator[pd.DataFrame]:
    """The tables' rows, several tables at a time."""
    import pyarrow as pa  # noqa: PLC0415 - half a second that must not delay the first request

    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table.select(list(COLUMNS)))
        rows += table.num_rows
        if rows >= ROWS_AT_ONCE:
            yield pa.concat_tables(held).unify_dictionaries().to_pandas(strings_to_categorical=False)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held).unify_dictionaries().to_pandas(strings_to_categorical=False)


COLUMNS = (
    *("ok", "model", "error_code", "attempts", "retries", *TOKENS, "wasted_tokens"),
    *("started_at", *TIMES),
)


class _Totals:
    """What is kept of the rows seen so far."""

    def __init__(self) -> None:
        self.completed = 0
        self.attempts = 0
        self.wasted_tokens = 0
        self.reasoning_reported = False
        self.retries: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.models: dict[str, Sums] = {}
        self.seconds: Counter[int] = Counter()
        self.tokens_by_second: Counter[int] = Counter()
        self.times: dict[str, list[np.ndarray]] = {name: [] for name in TIMES}
        self.sums_ms: Sums = defaultdict(float)
        self.timed: Counter[str] = Counter()

    def add(self, frame: pd.DataFrame) -> None:
        """Take in some rows."""
        done = frame[frame["ok"]]
        self.completed += len(done)
        self.attempts += int(frame["attempts"].sum())
        self.wasted_tokens += int(frame["wasted_tokens"].sum())
        self.reasoning_reported |= bool(done["reasoning_tokens"].notna().any())
        for reasons, count in frame["retries"].value_counts().items():
            for reason in filter(None, str(reasons).split(",")):
                self.retries[reason] += int(count)
        for code, count in frame["error_code"].value_counts().items():
            self.failures[str(code)] += int(count)
        self._add_models(frame, done)
        self._add_times(frame, done)

    def _add_models(self, frame: pd.DataFrame, done: pd.DataFrame) -> None:
        for model, count in frame["model"].value_counts(dropna=False).items():
            if count:
                self._model(model)["requests"] += int(count)
        by_model = done.groupby("model", observed=True, dropna=False)
        sums = by_model[[*TOKENS, "duration_ms"]].sum()
        counts = by_model[["duration_ms"]].count().rename(columns={"duration_ms": "timed"})
        sizes = by_model.size().rename("completed")
        for row in sums.join(counts).join(sizes).reset_index().to_dict("records"):
            kept = self._model(row.pop("model"))
            for name, value in row.items():
                kept[str(name)] += float(value)

    def _model(self, name: object) -> Sums:
        return self.models.setdefault(name if isinstance(name, str) else "", defaultdict(float))

    def _add_times(self, frame: pd.DataFrame, done: pd.DataFrame) -> None:
        for name in TIMES:
            rows = frame if name == "queued_ms" else done
            values = rows[name].dropna()
            self.times[name].append(values.to_numpy("float32"))
            self.sums_ms[name] += values.sum()
            self.timed[name] += len(values)
        ended = done["started_at"] + done["duration_ms"] / 1e3
        second = ended.dropna().astype("int64")
        counts = second.value_counts()
        for at, count in zip(counts.index.tolist(), counts.tolist(), strict=True):
            self.seconds[at] += count
        tokens = done["total_tokens"].fillna(0).groupby(second).sum()
        for at, count in zip(tokens.index.tolist(), tokens.tolist(), strict=True):
            self.tokens_by_second[at] += int(count)

    def analytics(self, prices: Mapping[str, ModelPrice]) -> BatchAnalytics:
        """The seed's figures."""
        return BatchAnalytics(
            total_requests=self.completed,
            total_prompt_tokens=self._total("prompt_tokens"),
            total_completion_tokens=self._total("completion_tokens"),
            total_reasoning_tokens=self._total("reasoning_tokens") if self.reasoning_reported else None,
            total_tokens=self._total("total_tokens"),
            avg_duration_ms=self._mean_ms("duration_ms"),
            avg_ttfb_ms=self._mean_ms("ttfb_ms"),
            total_cost=total_cost(self._usage(), prices),
        )

    def _total(self, name: str) -> int:
        return int(sum(sums[name] for sums in self.models.values()))

    def _mean_ms(self, name: str) -> float | None:
        return float(self.sums_ms[name]) / self.timed[name] if self.timed[name] else None

    def _usage(self) -> dict[str, TokenCounts]:
        return {
            name: TokenCounts(
                prompt=int(sums["prompt_tokens"]),
                completion=int(sums["completion_tokens"]),
                cached=int(sums["cached_tokens"]),
            )
            for name, sums in self.models.items()
            if sums["completed"]
        }

    def report(self, prices: Mapping[str, ModelPrice]) -> BatchReport:
        """All the rest."""
        usage = self._usage()
        costs = {name: cost_of(name, tokens, prices) for name, tokens in usage.items()}
        interval_s, points = self._throughput()
        return BatchReport(
            duration_ms=_percentiles(self.times["duration_ms"]),
            ttfb_ms=_percentiles(self.times["ttfb_ms"]),
            queue_ms=_percentiles(self.times["queued_ms"]),
            attempts=self.attempts,
            retries=dict(self.retries.most_common()),
            failures={code: count for code, count in self.failures.most_common() if count},
            models=[_model_figures(name, sums, costs.get(name)) for name, sums in sorted(self.models.items())],
            interval_s=interval_s,
            throughput=points,
            wasted_tokens=self.wasted_tokens,
            unpriced_models=sorted(name for name, cost in costs.items() if cost is None),
        )

    def _throughput(self) -> tuple[float, list[ThroughputPoint]]:
        if not self.seconds:
            return 0.0, []
        first, last = min(self.seconds), max(self.seconds)
        interval = max(1, -(-(last - first + 1) // POINTS))
        requests: Counter[int] = Counter()
        tokens: Counter[int] = Counter()
        for second, count in self.seconds.items():
            requests[(second - first) // interval] += count
            tokens[(second - first) // interval] += self.tokens_by_second[second]
        return float(interval), [
            ThroughputPoint(at=first + slot * interval, requests=requests[slot], tokens=tokens[slot])
            for slot in range((last - first) // interval + 1)
        ]


def _model_figures(name: str, sums: Sums, cost: Decimal | None) -> ModelFigures:
    timed = sums["timed"]
    return ModelFigures(
        model=name,
        requests=int(sums["requests"]),
        completed=int(sums["completed"]),
        failed=int(sums["requests"] - sums["completed"]),
        **{token: int(sums[token]) for token in TOKENS},
        avg_duration_ms=sums["duration_ms"] / timed if timed else None,
        cost=None if cost is None else as_text(cost),
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """The arrays as one, which also takes their place so that both are not held."""
    import numpy as np  # noqa: PLC0415 - as above

    if len(arrays) > 1:
        arrays[:] = [np.concatenate(arrays)]
    return arrays[0] if arrays else np.empty(0, "float32")


def _percentiles(arrays: list[np.ndarray]) -> Percentiles | None:
    import numpy as np  # noqa: PLC0415 - as above

    values = _joined(arrays)
    if not len(values):
        return None
    p50, p90, p95, p99, most = (float(point) for point in np.percentile(values, [50, 90, 95, 99, 100]))
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, max=most)

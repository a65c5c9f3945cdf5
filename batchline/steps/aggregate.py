"""Reduces a batch's figures to its analytics and its report, a stretch of rows at a time with pandas.

What is kept between stretches is sums, an array of 32-bit numbers for each kind of duration, and one for the model
of each: some 16 MB for a million requests, whatever the answers' size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from batchline.models.analytics import BatchAnalytics, BatchReport, ModelFigures, Percentiles
from batchline.models.failures import UNANSWERED, ErrorCode
from batchline.models.settings import ModelPrice
from batchline.steps.durations import Distribution, GroupedDistribution, Histogram
from batchline.steps.prices import PriceBook, as_text, total
from batchline.steps.spending import Spending
from batchline.steps.sums import exact_sums, whole_numbers
from batchline.steps.timeline import Timeline

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

ROWS_AT_ONCE = 16_384

TOKENS = (
    *("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens", "cache_write_tokens"),
    "total_tokens",
)
SOMETIMES = ("reasoning_tokens", "cached_tokens")
"""What some servers never report, which is not the same as none."""

TIMES = ("duration_ms", "ttfb_ms", "queued_ms")
COLUMNS = (
    *("ok", "model", "status_code", "error_code", "attempts", "retries", *TOKENS, "wasted_tokens"),
    *("started_at", *TIMES),
)


def aggregate(
    tables: Iterable[pa.Table], *, prices: Mapping[str, ModelPrice] | PriceBook
) -> tuple[BatchAnalytics, BatchReport]:
    """Analytics over the completed requests, and the report over all, of tables with `schema()`'s columns."""
    totals = Totals(prices)
    for frame in _frames(tables):
        totals.add(frame)
    return totals.analytics(), totals.report()


def _frames(tables: Iterable[pa.Table]) -> Iterator[pd.DataFrame]:
    """The tables' rows, several tables at a time."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table.select(list(COLUMNS)))
        rows += table.num_rows
        if rows >= ROWS_AT_ONCE:
            yield _frame(held)
            held, rows = [], 0
    if held:
        yield _frame(held)


def _frame(tables: list[pa.Table]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - half a second that must not delay the first request
    import pyarrow as pa  # noqa: PLC0415 - as above

    # Floats, which pandas would take for integers with gaps, round those above 2^53.
    exact = {pa.int64(): pd.Int64Dtype()}
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas(types_mapper=exact.get)
    return frame


class Totals:
    """What is kept of the rows seen so far."""

    def __init__(self, prices: Mapping[str, ModelPrice] | PriceBook) -> None:
        self._book = prices if isinstance(prices, PriceBook) else PriceBook(prices)
        self._requests: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._by_attempts: Counter[int] = Counter()
        self._failures: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._reported: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._models: dict[str, Counter[int]] = defaultdict(Counter)
        self._durations = GroupedDistribution()
        self._times = {"duration_ms": self._durations, "ttfb_ms": Distribution(), "queued_ms": Distribution()}
        self._model_ms: defaultdict[int, float] = defaultdict(float)
        self._histogram = Histogram()
        self._timeline = Timeline()
        self._spending = Spending(self._book)

    def add(self, frame: pd.DataFrame) -> None:
        """Take in some rows."""
        models = self._numbered(frame["model"])
        ok = frame["ok"].to_numpy("bool")
        done = frame[ok]
        self._requests.update(total=len(frame), completed=len(done))
        self._reported |= {name for name in SOMETIMES if done[name].notna().any()}
        self._add_tries(frame)
        self._add_failures(frame[~ok])
        self._add_models(frame, done, models, ok)
        self._add_times(frame, models, ok)
        self._spending.add(done, models[ok], self._names)

    def _numbered(self, models: pd.Series[str]) -> np.ndarray:
        """The number of each row's model."""
        import numpy as np  # noqa: PLC0415 - as above

        places, names = models.factorize(use_na_sentinel=True)
        numbers = [self._number(str(name)) for name in names] + [-1]
        if (places < 0).any():
            numbers[-1] = self._number("")
        numbered: np.ndarray = np.array(numbers, "int64")[places]
        return numbered

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def _add_tries(self, frame: pd.DataFrame) -> None:
        for attempts, count in frame["attempts"].value_counts().items():
            self._by_attempts[int(str(attempts))] += int(count)
        for reasons, count in frame["retries"].value_counts().items():
            for reason in filter(None, str(reasons).split(",")):
                self._retries[reason] += int(count)

    def _add_failures(self, failed: pd.DataFrame) -> None:
        statuses = failed["status_code"].fillna(0).astype("int64")
        found = statuses.groupby(failed["error_code"], observed=True).value_counts()
        for code, status, count in found.reset_index().itertuples(index=False):
            self._failures[str(code)][int(status)] += int(count)

    def _add_models(self, frame: pd.DataFrame, done: pd.DataFrame, models: np.ndarray, ok: np.ndarray) -> None:
        self._sum("requests", models, models >= 0)
        self._sum("completed", models, ok)
        self._sum("unanswered", models, frame["error_code"].isin(UNANSWERED).to_numpy("bool"))
        self._sum("wasted_tokens", models, whole_numbers(frame["wasted_tokens"]))
        for name in TOKENS:
            self._sum(name, models[ok], whole_numbers(done[name]))
        total = done["total_tokens"]
        kinds = whole_numbers(done["prompt_tokens"]) + whole_numbers(done["completion_tokens"])
        # A total alone does not tell what the tokens were.
        untold = (kinds == 0) & (total.isna().to_numpy() | (whole_numbers(total) > 0))
        self._sum("without_usage", models[ok], untold)

    def _sum(self, name: str, models: np.ndarray, values: np.ndarray) -> None:
        """Add the values to those of that name, by model."""
        sums = exact_sums(models, values.astype("int64"), len(self._names))
        self._models[name].update({number: value for number, value in enumerate(sums) if value})

    def _add_times(self, frame: pd.DataFrame, models: np.ndarray, ok: np.ndarray) -> None:
        import numpy as np  # noqa: PLC0415 - as above

        duration_ms, ttfb_ms, queued_ms = (frame[name].to_numpy("float64") for name in TIMES)
        self._durations.add_grouped(duration_ms[ok], models[ok])
        self._times["ttfb_ms"].add(ttfb_ms[ok])
        self._times["queued_ms"].add(queued_ms)
        self._histogram.add(duration_ms, ok)
        self._add_speeds(duration_ms[ok], models[ok], whole_numbers(frame["completion_tokens"])[ok])
        started = frame["started_at"].to_numpy("float64")
        ended = started + np.maximum(duration_ms, 0.0) / 1e3
        known = ~np.isnan(ended)
        tokens = whole_numbers(frame["total_tokens"])
        self._timeline.add(started[known], ended[known], ok[known], tokens[known])

    def _add_speeds(self, duration_ms: np.ndarray, models: np.ndarray, tokens: np.ndarray) -> None:
        """Sum up durations of completed requests, and the completion tokens that they took, by model."""
        import numpy as np  # noqa: PLC0415 - as above

        timed = ~np.isnan(duration_ms)
        models, count = models[timed], len(self._names)
        self._sum("timed", models, timed[timed])
        self._sum("timed_tokens", models, tokens[timed])
        for number, ms in enumerate(np.bincount(models, weights=duration_ms[timed], minlength=count).tolist()):
            self._model_ms[number] += ms

    def _total(self, name: str) -> int:
        return sum(self._models[name].values())

    def analytics(self) -> BatchAnalytics:
        """The seed's figures."""
        costs = self._spending.costs().values()
        known = [cost for cost in costs if cost is not None]
        return BatchAnalytics(
            total_requests=self._requests["completed"],
            total_prompt_tokens=self._total("prompt_tokens"),
            total_completion_tokens=self._total("completion_tokens"),
            **{f"total_{name}": self._total(name) for name in self._reported},
            total_tokens=self._total("total_tokens"),
            avg_duration_ms=self._times["duration_ms"].mean(),
            avg_ttfb_ms=self._times["ttfb_ms"].mean(),
            total_cost=as_text(total(known)) if known and len(known) == len(costs) else None,
        )

    def report(self) -> BatchReport:
        """All the rest."""
        costs = self._spending.costs()
        known = [cost for cost in costs.values() if cost is not None]
        failures = sorted(self._failures.items(), key=lambda item: (-item[1].total(), item[0]))
        expired, cancelled = (
            self._failures[code].total() if code in self._failures else 0
            for code in (ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_CANCELLED)
        )
        return BatchReport(
            total=self._requests["total"],
            completed=self._requests["completed"],
            failed=self._requests["total"] - self._requests["completed"] - expired - cancelled,
            expired=expired,
            cancelled=cancelled,
            **{name: self._times[column].percentiles() for name, column in PERCENTILES.items()},
            durations=self._histogram.bins(),
            attempts=sum(attempts * count for attempts, count in self._by_attempts.items()),
            retries=dict(self._retries.most_common()),
            requests_by_attempts=dict(sorted(self._by_attempts.items())),
            failures={code: statuses.total() for code, statuses in failures},
            failure_statuses={code: dict(statuses.most_common()) for code, statuses in failures},
            models=self._model_figures(costs),
            **self._over_time(),
            without_usage=self._total("without_usage"),
            wasted_tokens=self._total("wasted_tokens"),
            wasted_cost_at_most=self._wasted_cost(),
            known_cost=as_text(total(known)) if known else None,
            unpriced_models=sorted(self._names[number] for number, cost in costs.items() if cost is None),
            currency=self._spending.currency() if known else None,
            price_list=self._book.edition if costs else None,
        )

    def _over_time(self) -> dict[str, Any]:
        """The figures that have to do with time of day."""
        first, last = self._timeline.first_s, self._timeline.last_s
        points = self._timeline.points()
        span_s = 0.0 if first is None or last is None else last - first
        rates = {
            "requests_per_s": self._requests["completed"],
            "tokens_per_s": self._total("total_tokens"),
            "completion_tokens_per_s": self._total("completion_tokens"),
        }
        return {
            "interval_s": self._timeline.width_s if points else 0.0,
            "throughput": points,
            "first_started_at": first,
            "last_ended_at": last,
            **{name: _speed(count, span_s) for name, count in rates.items()},
        }

    def _wasted_cost(self) -> str | None:
        """What the wasted tokens cost at the most; none where there are none or a price is missing."""
        wasted = self._models["wasted_tokens"]
        costs = [self._spending.most_for(self._names[number], tokens) for number, tokens in wasted.items()]
        known = [cost for cost in costs if cost is not None]
        return as_text(total(known)) if known and len(known) == len(costs) else None

    def _model_figures(self, costs: Mapping[int, Decimal | None]) -> list[ModelFigures]:
        points = self._durations.percentiles_by_group()
        return [
            self._figures_of(number, costs.get(number), points.get(number))
            for _, number in sorted(self._numbers.items())
        ]

    def _figures_of(self, number: int, cost: Decimal | None, points: Percentiles | None) -> ModelFigures:
        counts = {name: self._models[name][number] for name in SUMMED}
        timed, ms = self._models["timed"][number], self._model_ms[number]
        return ModelFigures(
            model=self._names[number],
            failed=counts["requests"] - counts["completed"] - self._models["unanswered"][number],
            **counts,
            avg_duration_ms=ms / timed if timed else None,
            duration_ms=points,
            completion_tokens_per_s=_speed(self._models["timed_tokens"][number], ms / 1e3),
            cost=None if cost is None else as_text(cost),
            price_source=self._spending.source(number),
        )


def _speed(count: int, span_s: float) -> float | None:
    """So many a second; none where no time went by that could be measured."""
    return count / span_s if span_s > 1e-6 else None


PERCENTILES = {"duration_ms": "duration_ms", "ttfb_ms": "ttfb_ms", "queue_ms": "queued_ms"}
SUMMED = ("requests", "completed", *TOKENS, "wasted_tokens", "without_usage")

"""Sums the tokens of a batch by model and tariff, and computes their cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from batchline.analytics.exact_sum import exact_sums, to_int64
from batchline.analytics.prices import PRICE_LIST_CURRENCY, PriceBook, Tariff, TokenCounts, cost_of, sum_exact

PERIOD_RESOLUTION_S = 60
"""Seconds to which start times are rounded down; no price of the list changes within a minute."""

NO_TOKENS = TokenCounts(0, 0, 0, 0, 0, 0)


class CostAccumulator:
    """Token counts of completed requests by model number, and by period and tier of the model's tariff."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._usage: defaultdict[tuple[int, int, int], TokenCounts] = defaultdict(lambda: NO_TOKENS)
        self._tariffs: dict[int, Tariff | None] = {}

    def add(self, completed: pd.DataFrame, models: np.ndarray, names: Sequence[str]) -> None:
        """Add completed requests; `models` has each one's index in `names`."""
        for number in np.unique(models).tolist():
            self._tariffs.setdefault(number, self._book.find_tariff(names[number]))
        prompt = to_int64(completed["prompt_tokens"])
        periods, tiers = self._tariff_indexes(models, prompt, completed["started_at"].to_numpy("float64"))
        # One key for the three columns, as numpy finds unique numbers ten times as fast as unique rows.
        shape = (len(names), int(periods.max(initial=0)) + 1, int(tiers.max(initial=0)) + 1)
        keys, inverse = np.unique(np.ravel_multi_index((models, periods, tiers), shape), return_inverse=True)
        sums = [exact_sums(inverse, values, len(keys)) for values in _billable_tokens(completed, prompt)]
        indexes = np.stack(np.unravel_index(keys, shape), axis=1).tolist()
        for (model, period, tier), *used in zip(indexes, *sums, strict=True):
            previous = self._usage[model, period, tier]
            self._usage[model, period, tier] = TokenCounts(*map(sum, zip(previous, used, strict=True)))

    def _tariff_indexes(
        self, models: np.ndarray, prompt: np.ndarray, started: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the period and the tier of each request's price."""
        periods, tiers = np.zeros(len(models), "int64"), np.zeros(len(models), "int64")
        for number, tariff in self._tariffs.items():
            # Most tariffs have a single price and need only index 0.
            if tariff is None or (tariff.periods == 1 and not tariff.tier_starts):
                continue
            rows = models == number
            tiers[rows] = np.searchsorted(tariff.tier_starts, prompt[rows])
            if tariff.periods > 1:
                minutes = np.nan_to_num(started[rows]) // PERIOD_RESOLUTION_S
                distinct_minutes, inverse = np.unique(minutes, return_inverse=True)
                period_numbers = np.array(
                    [tariff.find_period(minute * PERIOD_RESOLUTION_S) for minute in distinct_minutes.tolist()],
                    "int64",
                )
                periods[rows] = period_numbers[inverse]
        return periods, tiers

    def costs(self) -> Mapping[int, Decimal | None]:
        """Return the exact cost of each model's requests, or None for a model without a price."""
        totals: dict[int, Decimal | None] = {}
        for (model, period, tier), used in self._usage.items():
            tariff, total = self._tariffs[model], totals.get(model, Decimal(0))
            prices = tariff.prices_for(period, tier) if tariff else None
            # A model with any request that has no price has no total.
            totals[model] = None if prices is None or total is None else sum_exact((total, prices.cost(used)))
        return totals

    def max_cost(self, name: str, tokens: int) -> Decimal | None:
        """Return the highest cost of `tokens` tokens of any kind, or None if the model has no price."""
        tariff = self._book.find_tariff(name)
        if tariff is None:
            return None
        tiers = range(len(tariff.tier_starts) + 1)
        all_prices = [tariff.prices_for(period, tier) for period in range(tariff.periods) for tier in tiers]
        highest_prices = [prices.highest for prices in all_prices if prices is not None]
        return cost_of(tokens, max(highest_prices)) if highest_prices else None

    def price_source(self, number: int) -> str | None:
        """Return the source of the model's price, or None if it has none."""
        tariff = self._tariffs.get(number)
        return None if tariff is None else tariff.source

    def currency(self) -> str | None:
        """Return the price list's currency, or None unless all prices are from the list."""
        # Configured prices have no currency, and sums must not mix the two.
        sources = {tariff.currency for tariff in self._tariffs.values() if tariff is not None}
        return PRICE_LIST_CURRENCY if sources == {PRICE_LIST_CURRENCY} else None


def _billable_tokens(completed: pd.DataFrame, prompt: np.ndarray) -> list[np.ndarray]:
    """Return an array per field of `TokenCounts`, with a value per request, as servers bill them."""
    completion = to_int64(completed["completion_tokens"])
    beyond_prompt = to_int64(completed["total_tokens"]) - prompt
    # Some servers (xAI's consumption guide; Gemini) count reasoning in the total alone, not in the completion
    # tokens, so everything beyond the prompt is output. A total without a prompt says nothing about kinds.
    output = np.where(prompt > 0, np.maximum(completion, beyond_prompt), completion)
    cached = np.minimum(to_int64(completed["cached_tokens"]), prompt)
    written = np.minimum(to_int64(completed["cache_write_tokens"]), prompt - cached)
    reasoning = np.minimum(to_int64(completed["reasoning_tokens"]), output)
    return [np.ones(len(completed), "int64"), prompt, cached, written, output, reasoning]

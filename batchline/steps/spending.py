"""What the models of a batch used and what it costs: tokens summed by model and by the prices that hold."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

from batchline.steps.prices import CURRENCY, PriceBook, Tariff, TokenCounts, price_of, total
from batchline.steps.sums import exact_sums, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import pandas as pd

PERIOD_CHECK_S = 60
"""No price of the list begins or ends within a minute."""

NOTHING = TokenCounts(0, 0, 0, 0, 0, 0)


class Spending:
    """Tokens of completed requests, by model (a number), by period and step of its tariff."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._used: defaultdict[tuple[int, int, int], TokenCounts] = defaultdict(lambda: NOTHING)
        self._priced: dict[int, Tariff | None] = {}
        self._dependent: dict[int, Tariff] = {}
        self.names: list[str] = []

    def add(self, done: pd.DataFrame, models: np.ndarray, names: Sequence[str]) -> None:
        """Take in completed requests, with the number of each one's model, which is its place in `names`."""
        import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request

        for number in np.unique(models).tolist():
            self._price(number, names[number])
        self.names = list(names)
        prompt = whole_numbers(done["prompt_tokens"])
        periods, steps = self._places(models, prompt, done["started_at"].to_numpy("float64"))
        # One number for the three, since numpy finds distinct numbers ten times as fast as distinct rows.
        shape = (len(names), int(periods.max(initial=0)) + 1, int(steps.max(initial=0)) + 1)
        keys, inverse = np.unique(np.ravel_multi_index((models, periods, steps), shape), return_inverse=True)
        sums = [exact_sums(inverse, each, len(keys)) for each in _billed(done, prompt)]
        places = np.stack(np.unravel_index(keys, shape), axis=1).tolist()
        for (model, period, step), *used in zip(places, *sums, strict=True):
            before = self._used[model, period, step]
            self._used[model, period, step] = TokenCounts(*map(sum, zip(before, used, strict=True)))

    def _price(self, number: int, name: str) -> None:
        if number in self._priced:
            return
        tariff = self._priced[number] = self._book.tariff(name)
        if tariff is not None and (tariff.starts or tariff.periods > 1):
            self._dependent[number] = tariff

    def _places(
        self, models: np.ndarray, prompt: np.ndarray, started: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The period and the step that each request is priced in."""
        import numpy as np  # noqa: PLC0415 - as above

        periods, steps = np.zeros(len(models), "int64"), np.zeros(len(models), "int64")
        for number, tariff in self._dependent.items():
            rows = models == number
            steps[rows] = np.searchsorted(tariff.starts, prompt[rows])
            if tariff.periods > 1:
                minutes = np.nan_to_num(started[rows]) // PERIOD_CHECK_S
                which, inverse = np.unique(minutes, return_inverse=True)
                found = np.array([tariff.period_at(minute * PERIOD_CHECK_S) for minute in which.tolist()], "int64")
                periods[rows] = found[inverse]
        return periods, steps

    def costs(self) -> Mapping[int, Decimal | None]:
        """What each model's requests cost, exact; none where it has no price."""
        amounts: defaultdict[int, list[Decimal | None]] = defaultdict(list)
        for model, amount in self._amounts():
            amounts[model].append(amount)
        known = {model: [each for each in some if each is not None] for model, some in amounts.items()}
        return {
            model: total(known[model]) if len(known[model]) == len(some) else None
            for model, some in amounts.items()
        }

    def _amounts(self) -> Iterator[tuple[int, Decimal | None]]:
        for (model, period, step), used in self._used.items():
            tariff = self._priced[model]
            rates = tariff.rates(period, step) if tariff else None
            yield model, rates.cost(used) if rates else None

    def most_for(self, name: str, tokens: int) -> Decimal | None:
        """What so many tokens of the model cost at the most, whatever they were; none where it has no price."""
        tariff = self._book.tariff(name)
        if tariff is None:
            return None
        steps = range(len(tariff.starts) + 1)
        found = [tariff.rates(period, step) for period in range(tariff.periods) for step in steps]
        dearest = [rates.dearest for rates in found if rates is not None]
        return price_of(tokens, max(dearest)) if dearest else None

    def source(self, number: int) -> str | None:
        """Whose price the model has."""
        tariff = self._priced.get(number)
        return None if tariff is None else tariff.source

    def currency(self) -> str | None:
        """The price list's currency, where all prices are from it."""
        sources = {tariff.currency for tariff in self._priced.values() if tariff is not None}
        return CURRENCY if sources == {CURRENCY} else None


def _billed(done: pd.DataFrame, prompt: np.ndarray) -> list[np.ndarray]:
    """The fields of `TokenCounts` for each request, as servers bill them.

    Some servers leave reasoning out of the completion tokens and count it in the total alone (xAI's consumption
    guide; Gemini), which is why what the total has beyond the prompt is output; a total without a prompt tells
    nothing about kinds.
    """
    import numpy as np  # noqa: PLC0415 - as above

    completion = whole_numbers(done["completion_tokens"])
    beyond = whole_numbers(done["total_tokens"]) - prompt
    output = np.where(prompt > 0, np.maximum(completion, beyond), completion)
    cached = np.minimum(whole_numbers(done["cached_tokens"]), prompt)
    written = np.minimum(whole_numbers(done["cache_write_tokens"]), prompt - cached)
    reasoning = np.minimum(whole_numbers(done["reasoning_tokens"]), output)
    return [np.ones(len(done), "int64"), prompt, cached, written, output, reasoning]

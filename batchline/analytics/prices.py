"""Finds prices of tokens, in the settings first, then in the genai-prices list; uses exact decimals only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import cached_property, reduce
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from batchline.models.settings import ModelPrice, Settings

if TYPE_CHECKING:
    from genai_prices.types import Provider, Tier

MILLIONTH = Decimal("1e-6")
THOUSANDTH = Decimal("1e-3")
PRICE_LIST_CURRENCY = "USD"
"""Currency of all prices in the list."""

EXACT_CONTEXT = Context(prec=200)
"""Decimal context with far more digits than any sum of tokens times a price, so that nothing is rounded."""


class TokenCounts(NamedTuple):
    """Token counts; `prompt` includes those `cached` and `written` to the cache, `output` those of `reasoning`."""

    requests: int
    prompt: int
    cached: int
    written: int
    output: int
    reasoning: int


@dataclass(frozen=True, kw_only=True)
class TokenPrices:
    """Prices of one million tokens of each kind, and of one thousand requests."""

    prompt: Decimal
    cached: Decimal
    written: Decimal
    output: Decimal
    reasoning: Decimal
    requests: Decimal = Decimal(0)

    def cost(self, used: TokenCounts) -> Decimal:
        """Return the exact cost of the tokens and requests."""
        return sum_exact(
            (
                cost_of(used.prompt - used.cached - used.written, self.prompt),
                cost_of(used.cached, self.cached),
                cost_of(used.written, self.written),
                cost_of(used.output - used.reasoning, self.output),
                cost_of(used.reasoning, self.reasoning),
                cost_of(used.requests, self.requests, per=THOUSANDTH),
            )
        )

    @property
    def highest(self) -> Decimal:
        """The highest price of a million tokens of any kind."""
        return max(self.prompt, self.cached, self.written, self.output, self.reasoning)


class Tariff:
    """The prices of one model, which may depend on the prompt's length and on the time of the request.

    A request is priced in the *tier* that its prompt reaches, counted from 0, of the *period* when it was sent.
    `tier_starts` are the prompt tokens above which each further tier begins, ascending.
    """

    def __init__(
        self,
        periods: Sequence[object],
        *,
        source: str,
        currency: str | None = None,
        active_at: Callable[[datetime], object] | None = None,
    ) -> None:
        """Take an object with `PRICE_FIELDS` per period; `active_at` returns the one that is active at a time."""
        self.source = source
        self.currency = currency
        self.periods = len(periods)
        self._periods = periods
        self._active_at = active_at
        prices = [getattr(period, name) for period in periods for name in PRICE_FIELDS]
        self.tier_starts = tuple(sorted({tier.start for price in prices for tier in _tiers_of(price)}))

    def find_period(self, sent_at: float) -> int:
        """Return the index of the period of a time in Unix seconds."""
        if self._active_at is None:
            return 0
        active = self._active_at(datetime.fromtimestamp(sent_at, UTC))
        return next(number for number, prices in enumerate(self._periods) if prices is active)

    def prices_for(self, period: int, tier: int) -> TokenPrices | None:
        """Return the prices, or None if there is no price for prompt tokens."""
        # Any prompt length within the tier selects its prices.
        prompt_tokens = self.tier_starts[tier - 1] + 1 if tier else 0
        prompt, cached, written, output, reasoning, requests = (
            _price_at(getattr(self._periods[period], name), prompt_tokens) for name in PRICE_FIELDS
        )
        if prompt is None:
            return None
        # Models without output, such as embeddings, have no price for it.
        output = output or Decimal(0)
        return TokenPrices(
            prompt=prompt,
            cached=prompt if cached is None else cached,
            written=prompt if written is None else written,
            output=output,
            reasoning=output if reasoning is None else reasoning,
            requests=requests or Decimal(0),
        )


PRICE_FIELDS = (
    *("input_mtok", "cache_read_mtok", "cache_write_mtok"),
    *("output_mtok", "output_reasoning_mtok", "requests_kcount"),
)
"""The prices in the list whose quantities a server reports in OpenAI's form."""


class PriceBook:
    """The prices of all models; `url_of` returns the URL that a model's requests are sent to, if known."""

    def __init__(
        self, configured: Mapping[str, ModelPrice], *, url_of: Callable[[str], str | None] = lambda _: None
    ) -> None:
        self._configured = configured
        self._url_of = url_of
        self._tariffs: dict[str, Tariff | None] = {}

    def find_tariff(self, model: str) -> Tariff | None:
        """Return the model's tariff, or None if no price is known."""
        if model not in self._tariffs:
            price = self._configured.get(model)
            if price is None:
                self._tariffs[model] = find_listed_tariff(model, self._url_of(model)) if model else None
            else:
                fields = (price.input, price.cached_input, price.cache_write, price.output, price.reasoning, None)
                period = SimpleNamespace(**dict(zip(PRICE_FIELDS, fields, strict=True)))
                self._tariffs[model] = Tariff([period], source="settings")
        return self._tariffs[model]

    @cached_property
    def version(self) -> str:
        """Name and version of the price list."""
        import genai_prices  # noqa: PLC0415 - loads the list, needed once a batch has ended

        return f"genai-prices {genai_prices.__version__}"


def build_price_book(settings: Settings) -> PriceBook:
    """Return the prices that apply with the settings."""

    def url_of(model: str) -> str | None:
        upstream = settings.upstream_for(model)
        return None if upstream is None else upstream.base_url

    return PriceBook(settings.prices, url_of=url_of)


def find_listed_tariff(model: str, url: str | None) -> Tariff | None:
    """Return the price list's tariff for the model when it is called at the URL, or None if it has none.

    The provider is the one that the URL belongs to. For any other URL, it is the prefix before a slash in the name
    (`openai/gpt-4o-mini`), else the provider whose model names match, else OpenAI.
    """
    from genai_prices import data_snapshot  # noqa: PLC0415 - as above

    snapshot = data_snapshot.get_snapshot()

    def provider_of(name: str | None, url: str | None) -> Provider | None:
        try:
            return snapshot.find_provider(name, None, url)
        except LookupError:
            return None

    providers_by_id = {provider.id: provider for provider in snapshot.providers}
    # A provider found by URL is final, as another one's prices for the same model may differ.
    provider, name = provider_of(None, url) if url else None, model
    if provider is None:
        prefix, _, rest = model.partition("/")
        provider, name = (providers_by_id.get(prefix.lower()), rest) if rest else (None, model)
    if provider is None:
        provider, name = provider_of(model.lower(), None) or providers_by_id.get("openai"), model
    model_info = provider.find_model(name, all_providers=snapshot.providers) if provider else None
    if provider is None or model_info is None:
        return None
    prices = model_info.prices
    return Tariff(
        [period.prices for period in prices] if isinstance(prices, list) else [prices],
        source=f"{provider.id} {model_info.id}",
        currency=PRICE_LIST_CURRENCY,
        active_at=model_info.get_prices,
    )


def _tiers_of(price: object) -> list[Tier]:
    """Return the tiers of a price in the list: above `start` prompt tokens, all tokens cost a tier's `price`."""
    return getattr(price, "tiers", [])


def _price_at(price: object, prompt_tokens: int) -> Decimal | None:
    """Return the price for a prompt of that length, or None if there is none."""
    reached = [tier.price for tier in _tiers_of(price) if prompt_tokens > tier.start]
    if reached:
        return reached[-1]
    base = getattr(price, "base", price)
    return base if isinstance(base, Decimal) else None


def cost_of(count: int, price: Decimal, *, per: Decimal = MILLIONTH) -> Decimal:
    """Return the exact cost of `count` tokens at `price` per `1/per` tokens."""
    return EXACT_CONTEXT.multiply(EXACT_CONTEXT.multiply(Decimal(count), price), per)


def sum_exact(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum of the amounts."""
    return reduce(EXACT_CONTEXT.add, amounts, Decimal(0))


def format_cost(cost: Decimal) -> str:
    """Return the decimal as text without an exponent and without trailing zeros."""
    return f"{EXACT_CONTEXT.normalize(cost):f}"

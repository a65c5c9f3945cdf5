"""What tokens cost: prices from the settings first, then from the genai-prices list; exact decimals throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from batchline.models.settings import ModelPrice, Settings

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

MILLIONTH = Decimal("1e-6")
THOUSANDTH = Decimal("1e-3")
PRICE_LIST_CURRENCY = "USD"
"""Of the price list."""

EXACT_CONTEXT = Context(prec=200)
"""Far more digits than any sum of tokens times a price has, so that nothing is rounded."""


class TokenCounts(NamedTuple):
    """What some requests used.

    Of the tokens of `prompt`, `cached` were read from the server's cache and `written` written to it. `output` is
    all that was generated, `reasoning` included.
    """

    requests: int
    prompt: int
    cached: int
    written: int
    output: int
    reasoning: int


@dataclass(frozen=True, kw_only=True)
class TokenPrices:
    """Prices of one million tokens of each kind, and of a thousand requests."""

    prompt: Decimal
    cached: Decimal
    written: Decimal
    output: Decimal
    reasoning: Decimal
    requests: Decimal = Decimal(0)

    def cost(self, used: TokenCounts) -> Decimal:
        """What that costs, exact."""
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
        """The most that a million tokens of any kind cost."""
        return max(self.prompt, self.cached, self.written, self.output, self.reasoning)


class ConfiguredTariff:
    """A price from the settings: the same for every request."""

    source = "settings"
    currency: str | None = None
    tier_starts: tuple[int, ...] = ()
    periods = 1

    def __init__(self, price: ModelPrice) -> None:
        self._prices = TokenPrices(
            prompt=price.input,
            cached=price.input if price.cached_input is None else price.cached_input,
            written=price.input if price.cache_write is None else price.cache_write,
            output=price.output,
            reasoning=price.output if price.reasoning is None else price.reasoning,
        )

    def find_period(self, sent_at: float) -> int:
        """The only one."""
        del sent_at
        return 0

    def prices_for(self, period: int, tier: int) -> TokenPrices | None:
        """The only ones."""
        del period, tier
        return self._prices


class PriceListTariff:
    """A price of the list, which may depend on the length of a request and on when it was sent.

    A request is priced in the *step* that its prompt reaches, counted from 0, of the *period* that it was sent in.
    `starts` are the prompt tokens above which each further step begins, ascending.
    """

    currency: str | None = PRICE_LIST_CURRENCY

    def __init__(self, provider: Provider, model: ModelInfo) -> None:
        self.source = f"{provider.id} {model.id}"
        self._model = model
        prices = model.prices
        self._periods = (
            [period_prices.prices for period_prices in prices] if isinstance(prices, list) else [prices]
        )
        self.periods = len(self._periods)
        tiers = {
            tier.start
            for period in self._periods
            for name in PRICE_FIELDS
            for tier in _tiers_of(getattr(period, name))
        }
        self.tier_starts = tuple(sorted(tiers))

    def find_period(self, sent_at: float) -> int:
        """The period of that time, in Unix seconds."""
        active = self._model.get_prices(datetime.fromtimestamp(sent_at, UTC))
        return next(number for number, prices in enumerate(self._periods) if prices is active)

    def prices_for(self, period: int, tier: int) -> TokenPrices | None:
        """The prices there; none where the list has no price for prompt tokens."""
        list_prices = self._periods[period]
        prompt_tokens = self.tier_starts[tier - 1] + 1 if tier else 0
        prompt, cached, written, output, reasoning, requests = (
            _price_at(getattr(list_prices, name), prompt_tokens) for name in PRICE_FIELDS
        )
        if prompt is None:
            return None
        output = output or Decimal(0)
        return TokenPrices(
            prompt=prompt,
            cached=prompt if cached is None else cached,
            written=prompt if written is None else written,
            output=output,
            reasoning=output if reasoning is None else reasoning,
            requests=requests or Decimal(0),
        )


Tariff = ConfiguredTariff | PriceListTariff
"""How one model is priced."""

PRICE_FIELDS = (
    *("input_mtok", "cache_read_mtok", "cache_write_mtok"),
    *("output_mtok", "output_reasoning_mtok", "requests_kcount"),
)
"""The list's prices that can be counted with what a server's answer tells in OpenAI's form."""


class PriceBook:
    """The prices of all models; `url_of` tells where a model's requests go, if that is known."""

    def __init__(
        self, configured: Mapping[str, ModelPrice], *, url_of: Callable[[str], str | None] = lambda _: None
    ) -> None:
        self._configured = configured
        self._url_of = url_of
        self._tariffs: dict[str, Tariff | None] = {}

    def find_tariff(self, model: str) -> Tariff | None:
        """How the model is priced; none where nobody says."""
        if model not in self._tariffs:
            self._tariffs[model] = self._look_up_tariff(model)
        return self._tariffs[model]

    def _look_up_tariff(self, model: str) -> Tariff | None:
        configured_price = self._configured.get(model)
        if configured_price is not None:
            return ConfiguredTariff(configured_price)
        return find_listed_tariff(model, self._url_of(model)) if model else None

    @cached_property
    def version(self) -> str:
        """The price list that is looked into, with its version."""
        import genai_prices  # noqa: PLC0415 - loads the list, needed once a batch has ended

        return f"genai-prices {genai_prices.__version__}"


def build_price_book(settings: Settings) -> PriceBook:
    """The prices that hold under these settings."""

    def url_of(model: str) -> str | None:
        upstream = settings.upstream_for(model)
        return None if upstream is None else upstream.base_url

    return PriceBook(settings.prices, url_of=url_of)


def find_listed_tariff(model: str, url: str | None) -> Tariff | None:
    """The price list's tariff for the model when it is called at that URL, if it has one.

    The provider is the one that the URL belongs to, whose own list then decides. For any other URL it is the one
    before a slash in the name (`openai/gpt-4o-mini`), else the one whose names begin like this, else OpenAI.
    """
    from genai_prices import data_snapshot  # noqa: PLC0415 - as above

    snapshot = data_snapshot.get_snapshot()

    def provider_of(name: str | None, url: str | None) -> Provider | None:
        try:
            return snapshot.find_provider(name, None, url)
        except LookupError:
            return None

    providers_by_id = {provider.id: provider for provider in snapshot.providers}
    provider, name = provider_of(None, url) if url else None, model
    if provider is None:
        prefix, _, rest = model.partition("/")
        provider, name = (providers_by_id.get(prefix.lower()), rest) if rest else (None, model)
    if provider is None:
        provider, name = provider_of(model.lower(), None) or providers_by_id.get("openai"), model
    model_info = provider.find_model(name, all_providers=snapshot.providers) if provider else None
    return PriceListTariff(provider, model_info) if provider and model_info else None


def _tiers_of(price: object) -> list[PriceTier]:
    return getattr(price, "tiers", [])


class PriceTier(Protocol):
    """A step of the list's: from more than `start` prompt tokens on, all tokens of a request cost `price`."""

    start: int
    price: Decimal


def _price_at(price: object, prompt_tokens: int) -> Decimal | None:
    """The price of a request with a prompt of that length."""
    reached = [tier.price for tier in _tiers_of(price) if prompt_tokens > tier.start]
    if reached:
        return reached[-1]
    base = getattr(price, "base", price)
    return base if isinstance(base, Decimal) else None


def cost_of(count: int, price: Decimal, *, per: Decimal = MILLIONTH) -> Decimal:
    """What so many cost, exact, where the price is for as many as `per` is a share of."""
    return EXACT_CONTEXT.multiply(EXACT_CONTEXT.multiply(Decimal(count), price), per)


def sum_exact(amounts: Iterable[Decimal]) -> Decimal:
    """Their sum, exact."""
    exact_sum = Decimal(0)
    for amount in amounts:
        exact_sum = EXACT_CONTEXT.add(exact_sum, amount)
    return exact_sum


def format_cost(cost: Decimal) -> str:
    """The decimal without an exponent and without needless zeros."""
    text = f"{cost:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text

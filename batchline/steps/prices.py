"""What tokens cost: prices from the settings first, then from the genai-prices list; decimals throughout."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from batchline.models.settings import ModelPrice

PER = Decimal(1_000_000)


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of one model; `cached` are those of `prompt` that the server had cached."""

    prompt: int
    completion: int
    cached: int


def cost_of(model: str, tokens: TokenCounts, prices: Mapping[str, ModelPrice]) -> Decimal | None:
    """What the tokens cost, exact; none where the model has no price.

    Reasoning tokens are part of the completion and cost as much. Of prices that step up with a request's length
    the first step is taken, since sums over requests do not tell their lengths.
    """
    price = prices.get(model) or listed_price(model)
    if price is None:
        return None
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = tokens.prompt - tokens.cached
    return (fresh * price.input + tokens.cached * cached_price + tokens.completion * price.output) / PER


def total_cost(usage: Mapping[str, TokenCounts], prices: Mapping[str, ModelPrice]) -> str | None:
    """The sum over models as a plain decimal string; none where nothing was used or any price is unknown."""
    costs = [cost_of(model, tokens, prices) for model, tokens in usage.items()]
    known = [cost for cost in costs if cost is not None]
    if not costs or len(known) < len(costs):
        return None
    return as_text(sum(known, Decimal(0)))


def as_text(cost: Decimal) -> str:
    """The decimal without an exponent and without needless zeros."""
    text = f"{cost:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def listed_price(model: str) -> ModelPrice | None:
    """The price list's entry for the model, if it has one."""
    import genai_prices  # noqa: PLC0415 - loads the list, needed once a batch has ended

    if not model:
        return None
    try:
        found = genai_prices.calc_price(genai_prices.Usage(input_tokens=1, output_tokens=1), model).model_price
    except LookupError:
        return None
    entry = _per_million(found.input_mtok)
    if entry is None:
        return None
    return ModelPrice(
        input=entry,
        output=_per_million(found.output_mtok) or Decimal(0),
        cached_input=_per_million(found.cache_read_mtok),
    )


def _per_million(price: object) -> Decimal | None:
    base = getattr(price, "base", price)
    return base if isinstance(base, Decimal) else None

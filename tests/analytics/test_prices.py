"""Costs of requests: which price applies, compared with what the price list's own library charges."""

from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import hypothesis.strategies as st
import pytest
from helpers.metrics_rows import failed_row, make_table, ok_row
from hypothesis import given, settings

from batchline.analytics.prices import PriceBook, build_price_book, find_listed_tariff, format_cost
from batchline.analytics.totals import compute_analytics
from batchline.models.settings import ModelPrice, load_settings
from batchline.models.upstreams import Upstream

TIERED, BY_THE_HOUR, BY_THE_REQUEST, REASONING = (
    *("claude-sonnet-4-5", "deepseek-chat"),
    *("perplexity/sonar-pro", "perplexity/sonar-deep-research"),
)
few = settings(max_examples=60, deadline=None)


def cost(*rows, prices=None, **options):
    analytics, _ = compute_analytics([make_table(list(rows))], prices=prices or {}, **options)
    return analytics.total_cost


def by_library(model: str, *, at: float, prompt: int, cached: int, written: int, completion: int) -> Decimal:
    """Return what the price list's own library charges for one request."""
    usage = genai_prices.Usage(
        input_tokens=prompt, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=completion
    )
    when = datetime.fromtimestamp(at, UTC)
    return genai_prices.calc_price(usage, model, genai_request_timestamp=when).total_price


@st.composite
def requests(draw: st.DrawFn) -> dict[str, float]:
    prompt = draw(st.integers(0, 2_000) | st.integers(199_990, 200_010) | st.integers(0, 900_000))
    cached = draw(st.integers(0, prompt))
    return {
        "prompt": prompt,
        "cached": cached,
        "written": draw(st.integers(0, prompt - cached)),
        "completion": draw(st.integers(0, 100_000)),
        "at": draw(st.floats(1_735_000_000, 1_800_000_000)),
    }


@few
@given(
    st.sampled_from([TIERED, BY_THE_HOUR, "gpt-4o-mini", "o3-mini", "gpt-5.6-sol", "gemini-2.5-pro"]),
    st.lists(requests(), min_size=1, max_size=8),
)
def test_batch_cost_is_the_sum_of_its_request_costs(model, some) -> None:
    rows = [
        ok_row(
            model=model,
            prompt_tokens=each["prompt"],
            cached_tokens=each["cached"],
            cache_write_tokens=each["written"],
            completion_tokens=each["completion"],
            total_tokens=each["prompt"] + each["completion"],
            started_at=each["at"],
        )
        for each in some
    ]

    # The library divides each amount with 28 digits, of which ours never has as many.
    assert Decimal(cost(*rows)) == sum((by_library(model, **each) for each in some), Decimal(0))


def test_prompt_above_tier_threshold_costs_the_higher_tier() -> None:
    at_the_step = ok_row(model=TIERED, prompt_tokens=200_000, completion_tokens=0, total_tokens=200_000)
    above = ok_row(model=TIERED, prompt_tokens=200_001, completion_tokens=0, total_tokens=200_001)

    assert cost(at_the_step) == "0.6"
    assert cost(above) == "1.200006"
    assert cost(at_the_step, above) == "1.800006"


def test_price_by_hour_depends_on_the_send_time() -> None:
    day = datetime(2025, 6, 1, tzinfo=UTC).timestamp()
    noon, night = (ok_row(model=BY_THE_HOUR, started_at=day + hour * 3_600) for hour in (12, 20))

    assert Decimal(cost(noon)) == 2 * Decimal(cost(night))
    assert Decimal(cost(noon, night)) == Decimal(cost(noon)) + Decimal(cost(night))


def test_price_per_request_is_added_to_the_token_cost() -> None:
    nothing = ok_row(model=BY_THE_REQUEST, prompt_tokens=1, completion_tokens=0, total_tokens=1)

    assert cost(nothing, nothing) == "0.028006"


def test_reasoning_tokens_cost_their_listed_price() -> None:
    row = ok_row(
        model=REASONING, prompt_tokens=0, completion_tokens=1_000, reasoning_tokens=400, total_tokens=1_000
    )

    assert cost(row) == format_cost((600 * Decimal(8) + 400 * Decimal(3)) / 1_000_000)


OWN = {"own": ModelPrice(input=1, output=10)}
TOLD = {"model": "own", "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


@pytest.mark.parametrize(
    ("price", "used", "expected"),
    [
        pytest.param({}, {}, "0.0003", id="prompt_and_completion"),
        pytest.param({}, {"reasoning_tokens": 15}, "0.0003", id="reasoning_is_part_of_the_completion"),
        pytest.param({"reasoning": 30}, {"reasoning_tokens": 15}, "0.0006", id="reasoning_at_its_own_price"),
        pytest.param({"reasoning": 30}, {"reasoning_tokens": 99}, "0.0007", id="never_more_reasoning_than_output"),
        pytest.param(
            {}, {"reasoning_tokens": 15, "total_tokens": 135}, "0.00045", id="reasoning_beside_completion"
        ),
        pytest.param({}, {"total_tokens": 150}, "0.0006", id="the_total_tells_of_more_output"),
        pytest.param({}, {"total_tokens": 7}, "0.0003", id="a_total_that_is_too_small"),
        pytest.param({"cached_input": "0.1"}, {"cached_tokens": 60}, "0.000246", id="cached_at_its_own_price"),
        pytest.param({}, {"cached_tokens": 60}, "0.0003", id="cached_as_the_rest"),
        pytest.param({"cache_write": "1.25"}, {"cache_write_tokens": 40}, "0.00031", id="cache_writes"),
        pytest.param({"input": 0, "output": 0}, {}, "0", id="free"),
    ],
)
def test_configured_price_applies_to_each_kind_of_token(price, used, expected) -> None:
    prices = {"own": ModelPrice(**{"input": 1, "output": 10, **price})}

    assert cost(ok_row(**{**TOLD, **used}), prices=prices) == expected


def test_configured_price_overrides_the_price_list() -> None:
    row = ok_row(model="gpt-4o-mini", prompt_tokens=1_000_000, completion_tokens=0, total_tokens=1_000_000)

    assert cost(row) == "0.15"
    assert cost(row, prices={"gpt-4o-mini": ModelPrice(input="7")}) == "7"


def test_model_without_price_is_named_and_leaves_no_total_cost() -> None:
    rows = [ok_row(), ok_row(model="nobody's"), ok_row(model=None)]

    analytics, report = compute_analytics([make_table(rows)], prices={})

    assert analytics.total_cost is None
    assert report.unpriced_models == ["", "nobody's"]
    assert report.known_cost == {model.model: model.cost for model in report.models}["gpt-4o-mini"] == "0.000045"


def test_model_without_completed_requests_needs_no_price() -> None:
    analytics, report = compute_analytics([make_table([ok_row(), failed_row(model="nobody's")])], prices={})

    assert (analytics.total_cost, report.unpriced_models) == ("0.000045", [])


def test_wasted_tokens_cost_at_most_the_highest_price_of_the_model() -> None:
    _, report = compute_analytics(
        [make_table([ok_row(wasted_tokens=1_000), ok_row(wasted_tokens=500)])], prices={}
    )
    _, unknown = compute_analytics([make_table([ok_row(), ok_row(model="nobody's", wasted_tokens=1)])], prices={})

    assert (report.wasted_tokens, report.wasted_cost_at_most) == (1_500, "0.0009")
    assert unknown.wasted_cost_at_most is None


def test_currency_is_known_only_if_all_prices_are_listed() -> None:
    _, listed = compute_analytics([make_table([ok_row()])], prices=OWN)
    _, mixed = compute_analytics([make_table([ok_row(), ok_row(**TOLD)])], prices=OWN)

    assert (listed.currency, listed.models[0].price_source) == ("USD", "openai gpt-4o-mini")
    assert (mixed.currency, mixed.models[1].price_source) == (None, "settings")
    assert listed.price_list == f"genai-prices {genai_prices.__version__}"


BY_NAME = {
    "gpt-4o-mini": "openai gpt-4o-mini",
    "GPT-4o-mini": "openai gpt-4o-mini",
    "gpt-4o-mini-2024-07-18": "openai gpt-4o-mini",
    "openai/gpt-4o-mini": "openai gpt-4o-mini",
    "text-embedding-3-small": "openai text-embedding-3-small",
    "claude-sonnet-4-5-20250929": "anthropic claude-sonnet-4-5",
    "anthropic/claude-sonnet-4-5": "anthropic claude-sonnet-4-5",
    "google/gemini-2.5-pro": "google gemini-2.5-pro",
    "groq/llama-3.1-8b-instant": "groq llama-3.1-8b-instant",
    "openrouter/openai/gpt-4o-mini": "openrouter openai/gpt-4o-mini",
    "llama-3.1-8b-instruct": None,
    "meta-llama/Llama-3.1-8B-Instruct": None,
    "google/gemma-2-9b-it": None,
    "gpt-of-my-own": None,
    "/": None,
}


@pytest.mark.parametrize("model", BY_NAME)
def test_price_at_unknown_url_is_found_by_model_name(model) -> None:
    tariff = find_listed_tariff(model, "http://localhost:8000/v1")

    assert (tariff and tariff.source) == BY_NAME[model]


BY_URL = {
    ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini"): "openrouter openai/gpt-4o-mini",
    ("https://api.groq.com/openai/v1", "llama-3.1-8b-instant"): "groq llama-3.1-8b-instant",
    ("https://me.openai.azure.com/openai/v1", "gpt-4o-mini"): "azure gpt-4o-mini",
    ("https://api.groq.com/openai/v1", "gpt-4o-mini"): None,
}


@pytest.mark.parametrize(("url", "model"), BY_URL)
def test_price_at_provider_url_comes_from_that_provider(url, model) -> None:
    tariff = find_listed_tariff(model, url)

    assert (tariff and tariff.source) == BY_URL[url, model]


def test_price_is_looked_up_at_the_upstream_serving_the_model() -> None:
    upstreams = [
        Upstream(name="groq", base_url="https://api.groq.com/openai/v1", models={"llama-3.1-8b-instant"}),
        Upstream(name="openai", base_url="https://api.openai.com/v1"),
    ]
    book = build_price_book(load_settings(upstreams=upstreams, prices={"mine": {"input": 1}}))

    sources = {
        name: tariff and tariff.source
        for name in ("llama-3.1-8b-instant", "gpt-4o-mini", "mine", "")
        for tariff in [book.find_tariff(name)]
    }
    assert sources == {
        "llama-3.1-8b-instant": "groq llama-3.1-8b-instant",
        "gpt-4o-mini": "openai gpt-4o-mini",
        "mine": "settings",
        "": None,
    }


def test_every_listed_price_is_readable() -> None:
    from genai_prices import data_snapshot  # noqa: PLC0415

    book = PriceBook({})
    priced = 0
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            tariff = book.find_tariff(f"{provider.id}/{model.id}")
            if tariff is None:
                continue
            for period in range(tariff.periods):
                for step in range(len(tariff.tier_starts) + 1):
                    rates = tariff.prices_for(period, step)
                    priced += rates is not None and rates.highest >= rates.prompt >= 0
    assert priced > 1_000


@given(st.decimals(0, 10**20, allow_nan=False, allow_infinity=False))
def test_formatted_cost_has_no_exponent_and_keeps_its_value(amount) -> None:
    text = format_cost(amount)

    assert Decimal(text) == amount
    assert set(text) <= set("0123456789.")
    assert not ("." in text and text[-1] in "0.")

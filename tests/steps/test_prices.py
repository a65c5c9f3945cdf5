"""What requests cost: whose price holds, and that it is what the price list's own library charges for each."""

from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from batchline.analytics.prices import PriceBook, build_price_book, find_listed_tariff, format_cost
from batchline.analytics.totals import compute_analytics
from batchline.models.settings import ModelPrice, load_settings
from batchline.models.upstreams import Upstream
from tests.steps.some_figures import done, failed, table

TIERED, BY_THE_HOUR, BY_THE_REQUEST, REASONING = (
    *("claude-sonnet-4-5", "deepseek-chat"),
    *("perplexity/sonar-pro", "perplexity/sonar-deep-research"),
)
few = settings(max_examples=60, deadline=None)


def cost(*rows, prices=None, **options):
    analytics, _ = compute_analytics([table(list(rows))], prices=prices or {}, **options)
    return analytics.total_cost


def by_library(model: str, *, at: float, prompt: int, cached: int, written: int, completion: int) -> Decimal:
    """What the library that the list comes with charges for one request."""
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
def test_a_batch_costs_what_its_requests_cost_one_by_one(model, some) -> None:
    rows = [
        done(
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


def test_a_long_prompt_costs_the_long_prompts_price_and_a_short_one_beside_it_does_not() -> None:
    at_the_step = done(model=TIERED, prompt_tokens=200_000, completion_tokens=0, total_tokens=200_000)
    above = done(model=TIERED, prompt_tokens=200_001, completion_tokens=0, total_tokens=200_001)

    assert cost(at_the_step) == "0.6"
    assert cost(above) == "1.200006"
    assert cost(at_the_step, above) == "1.800006"


def test_a_price_by_the_hour_depends_on_when_a_request_was_sent() -> None:
    day = datetime(2025, 6, 1, tzinfo=UTC).timestamp()
    noon, night = (done(model=BY_THE_HOUR, started_at=day + hour * 3_600) for hour in (12, 20))

    assert Decimal(cost(noon)) == 2 * Decimal(cost(night))
    assert Decimal(cost(noon, night)) == Decimal(cost(noon)) + Decimal(cost(night))


def test_a_price_of_each_request_is_added_to_that_of_its_tokens() -> None:
    nothing = done(model=BY_THE_REQUEST, prompt_tokens=1, completion_tokens=0, total_tokens=1)

    assert cost(nothing, nothing) == "0.028006"


def test_reasoning_has_the_lists_own_price_where_there_is_one() -> None:
    row = done(model=REASONING, prompt_tokens=0, completion_tokens=1_000, reasoning_tokens=400, total_tokens=1_000)

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
def test_a_price_from_the_settings_tells_kinds_of_tokens_apart(price, used, expected) -> None:
    prices = {"own": ModelPrice(**{"input": 1, "output": 10, **price})}

    assert cost(done(**{**TOLD, **used}), prices=prices) == expected


def test_the_settings_go_before_the_list() -> None:
    row = done(model="gpt-4o-mini", prompt_tokens=1_000_000, completion_tokens=0, total_tokens=1_000_000)

    assert cost(row) == "0.15"
    assert cost(row, prices={"gpt-4o-mini": ModelPrice(input="7")}) == "7"


def test_a_model_without_a_price_leaves_the_batch_without_a_total_and_is_named() -> None:
    rows = [done(), done(model="nobody's"), done(model=None)]

    analytics, report = compute_analytics([table(rows)], prices={})

    assert analytics.total_cost is None
    assert report.unpriced_models == ["", "nobody's"]
    assert report.known_cost == {model.model: model.cost for model in report.models}["gpt-4o-mini"] == "0.000045"


def test_a_model_none_of_whose_requests_completed_needs_no_price() -> None:
    analytics, report = compute_analytics([table([done(), failed(model="nobody's")])], prices={})

    assert (analytics.total_cost, report.unpriced_models) == ("0.000045", [])


def test_wasted_tokens_cost_at_most_their_models_dearest_price() -> None:
    _, report = compute_analytics([table([done(wasted_tokens=1_000), done(wasted_tokens=500)])], prices={})
    _, unknown = compute_analytics([table([done(), done(model="nobody's", wasted_tokens=1)])], prices={})

    assert (report.wasted_tokens, report.wasted_cost_at_most) == (1_500, "0.0009")
    assert unknown.wasted_cost_at_most is None


def test_the_currency_is_told_where_the_list_alone_is_charged_by() -> None:
    _, listed = compute_analytics([table([done()])], prices=OWN)
    _, mixed = compute_analytics([table([done(), done(**TOLD)])], prices=OWN)

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
def test_at_an_unknown_url_the_name_tells_whose_price_it_is(model) -> None:
    tariff = find_listed_tariff(model, "http://localhost:8000/v1")

    assert (tariff and tariff.source) == BY_NAME[model]


BY_URL = {
    ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini"): "openrouter openai/gpt-4o-mini",
    ("https://api.groq.com/openai/v1", "llama-3.1-8b-instant"): "groq llama-3.1-8b-instant",
    ("https://me.openai.azure.com/openai/v1", "gpt-4o-mini"): "azure gpt-4o-mini",
    ("https://api.groq.com/openai/v1", "gpt-4o-mini"): None,
}


@pytest.mark.parametrize(("url", "model"), BY_URL)
def test_at_a_providers_url_its_own_list_decides(url, model) -> None:
    tariff = find_listed_tariff(model, url)

    assert (tariff and tariff.source) == BY_URL[url, model]


def test_prices_are_looked_up_at_the_upstream_that_serves_the_model() -> None:
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


def test_every_listed_price_can_be_read() -> None:
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
def test_a_cost_is_written_without_an_exponent_and_reads_the_same(amount) -> None:
    text = format_cost(amount)

    assert Decimal(text) == amount
    assert set(text) <= set("0123456789.")
    assert not ("." in text and text[-1] in "0.")

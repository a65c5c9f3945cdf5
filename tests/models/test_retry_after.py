"""Delays that servers ask for, in all forms."""

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.retry_after import MAX_DELAY_S, parse_delay_s, requested_delay

NOW = datetime(2024, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()

VALUES = {
    "20": 20,
    "0": 0,
    "1.5": 1.5,
    " 20 ": 20,
    "20s": 20,
    "7.66s": 7.66,
    "500ms": 0.5,
    "1m30s": 90,
    "6m0s": 360,
    "1h2m3s": 3_723,
    "1d": 86_400,
    "20 seconds": 20,
    "2 minutes": 120,
    "Wed, 06 Nov 2024 08:49:37 GMT": 30,
    "Wednesday, 06-Nov-24 08:49:37 GMT": 30,
    "Wed Nov  6 08:49:37 2024": 30,
    "2024-11-06T08:49:37Z": 30,
    "2024-11-06T08:49:37.5+00:00": 30.5,
    "2024-11-06T17:49:37+09:00": 30,
    "2024-11-06T08:49:37": 30,
    "1730882977": 30,
    "1730882977000": 30,
}


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_each_form_of_a_delay_is_understood():
    for text, delay_s in VALUES.items():
        assert parse_delay_s(text, NOW) == pytest.approx(delay_s), text


NONSENSE = (
    "",
    "-1",
    "-20s",
    "soon",
    "nan",
    "inf",
    "1e9",
    "0x10",
    "1_000",
    "20 bananas",
    "٢٠",
    "9" * 40,
    "9" * 5_000,
    "2024-11-06T08:49:06Z",
    "Wed, 06 Nov 2024 08:49:06 GMT",
    "1730882946",
    "2024-13-45",
    "s",
    "1s 2",
)


def test_nonsense_and_past_times_are_ignored():
    for text in NONSENSE:
        assert parse_delay_s(text, NOW) is None, text
        assert requested_delay([("Retry-After", text)], b"", NOW) is None, text


HEADERS = {
    "seconds": ([("Retry-After", "20")], 20),
    "milliseconds": ([("retry-after-ms", "1500")], 1.5),
    "milliseconds_nonsense": ([("retry-after-ms", "-1")], None),
    "list": ([("retry-after", "20, 30, 10")], 30),
    "twice": ([("retry-after", "20"), ("Retry-After", "45")], 45),
    "both": ([("retry-after", "1"), ("retry-after-ms", "2500")], 2.5),
    "requests_spent": ([("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")], 360),
    "tokens_spent": ([("x-ratelimit-reset-tokens", "500ms"), ("x-ratelimit-remaining-tokens", "0")], 0.5),
    "azure_seconds": ([("x-ratelimit-reset-tokens", "7"), ("x-ratelimit-remaining-tokens", "0")], 7),
    "budget_left": ([("x-ratelimit-reset-tokens", "500ms"), ("x-ratelimit-remaining-tokens", "3")], None),
    "budget_unknown": ([("x-ratelimit-reset-tokens", "500ms")], None),
    "budget_nonsense": ([("x-ratelimit-reset-tokens", "0"), ("x-ratelimit-remaining-tokens", "-1")], None),
    "openrouter": ([("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", "1730882977000")], 30),
    "anthropic": ([("anthropic-ratelimit-input-tokens-reset", "2024-11-06T08:49:37Z")], 30),
    "anthropic_spent": (
        [
            ("anthropic-ratelimit-requests-reset", "2024-11-06T08:50:07Z"),
            ("anthropic-ratelimit-requests-remaining", "0"),
        ],
        60,
    ),
    "anthropic_left": (
        [
            ("anthropic-ratelimit-requests-reset", "2024-11-06T08:50:07Z"),
            ("anthropic-ratelimit-requests-remaining", "9"),
        ],
        None,
    ),
    "longest_of_all": (
        [
            ("retry-after", "2"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1m30s"),
            ("anthropic-ratelimit-tokens-reset", "2024-11-06T08:49:37Z"),
        ],
        90,
    ),
    "nothing": ([("content-type", "application/json")], None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_longest_delay_of_the_headers_counts(name):
    headers, delay_s = HEADERS[name]
    found = requested_delay(headers, b"", NOW)

    assert (None if found is None else found.requested_s) == (None if delay_s is None else pytest.approx(delay_s))


GOOGLE = [
    {
        "error": {
            "code": 429,
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36s"}],
        }
    }
]
BODIES = {
    "google": (json.dumps(GOOGLE), 36),
    "google_pretty": (json.dumps(GOOGLE, indent=2), 36),
    "google_fraction": ('{"retryDelay": "12.5s"}', 12.5),
    "google_as_text_in_a_message": (json.dumps({"error": {"message": json.dumps(GOOGLE)}}), 36),
    "google_nonsense": ('{"retryDelay": "-3s"}', None),
    "google_object": ('{"retryDelay": {"seconds": 3}}', None),
    "openai": ("Rate limit reached for gpt. Limit 3, Used 3. Please try again in 20s. Visit", 20),
    "openai_minutes": ("Please try again in 6m0s.", 360),
    "openai_milliseconds": ("Please try again in 857ms.", 0.857),
    "openai_hours": ("Please try again in 1h12m3.456s.", 4_323.456),
    "azure": ("have exceeded call rate limit. Please retry after 12 seconds.", 12),
    "gemini": ("Please retry in 36.612s.", 36.612),
    "minutes": ("Try again in 2 minutes", 120),
    "no_unit": ("please try again in 20", 20),
    "nothing": ('{"error": {"message": "Rate limit reached"}}', None),
    "not_a_wait": ("do not retry in such cases", None),
}


@pytest.mark.parametrize("name", BODIES)
def test_delay_in_the_body_is_read(name):
    body, delay_s = BODIES[name]
    found = requested_delay([], body.encode(), NOW)

    assert (None if found is None else found.requested_s) == (None if delay_s is None else pytest.approx(delay_s))


def test_delay_in_the_body_counts_if_it_is_longer_than_that_of_the_headers():
    found = requested_delay([("retry-after", "2")], b"try again in 20s", NOW)

    assert (found.delay_s, found.source) == (20, "message")


def test_delay_of_more_than_an_hour_is_capped_and_says_so():
    found = requested_delay([("retry-after", "86400")], b"", NOW)

    assert (found.delay_s, found.requested_s, found.is_capped, found.source) == (
        MAX_DELAY_S,
        86_400,
        True,
        "retry-after",
    )
    assert not requested_delay([("retry-after", "3600")], b"", NOW).is_capped


@given(
    headers=st.lists(
        st.tuples(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]), st.text())
    ),
    body=st.binary(),
    now=st.floats(0, 1e11),
)
def test_any_headers_and_body_give_a_delay_between_zero_and_the_cap_or_none(headers, body, now):
    found = requested_delay([*headers, ("x-ratelimit-remaining-tokens", "0")], body, now)

    assert found is None or 0 <= found.delay_s <= MAX_DELAY_S


def test_long_bodies_are_read_quickly():
    start = time.perf_counter()
    for text in (
        "try again in 1" * 100_000,
        "retry after 1s " * 100_000,
        '"retryDelay":"1s"' * 100_000,
        "1" * 1_000_000,
    ):
        requested_delay([("retry-after", text)], text.encode(), NOW)
    assert time.perf_counter() - start < 2

"""How long to wait before the next attempt."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.backoff import backoff_s, retry_after_s

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()
IN_30_S = {
    "the form to send": "Sun, 06 Nov 1994 08:49:37 GMT",
    "RFC 850's": "Sunday, 06-Nov-94 08:49:37 GMT",
    "asctime's": "Sun Nov  6 08:49:37 1994",
}


class AtMost(Random):
    """Draws the upper bound each time."""

    def uniform(self, a, b):
        return b


class AtLeast(Random):
    """Draws the lower bound each time."""

    def uniform(self, a, b):
        return a


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@given(st.integers(1, 10_000), st.floats(0.001, 100), st.floats(0.001, 1_000), st.integers())
def test_backoff_is_between_zero_and_cap(attempt, base_s, cap_s, seed):
    assert 0 <= backoff_s(attempt, base_s=base_s, cap_s=cap_s, random=Random(seed)) <= cap_s


def test_backoff_upper_bound_doubles_up_to_cap():
    waits = [backoff_s(attempt, base_s=0.5, cap_s=10, random=AtMost()) for attempt in range(1, 8)]
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]


def test_backoff_with_full_jitter_can_be_zero():
    assert backoff_s(5, base_s=0.5, cap_s=10, random=AtLeast()) == 0


def test_backoff_with_same_seed_is_equal():
    assert len({backoff_s(3, base_s=1, cap_s=60, random=Random(7)) for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("millis", "after", "wait_s"),
    [
        ("1500", None, 1.5),
        ("0", None, 0),
        ("1500", "60", 1.5),
        ("soon", "60", 60),
        ("-1", "60", 60),
        (None, "60", 60),
        (None, "0.25", 0.25),
        (None, " 60 ", 60),
        (None, None, None),
        (None, "", None),
        (None, "soon", None),
        (None, "-60", None),
        (None, "nan", None),
        (None, "inf", None),
        (None, "1e300", None),
    ],
    ids=str,
)
def test_retry_after_numeric_headers_are_parsed(millis, after, wait_s):
    assert retry_after_s(retry_after_ms=millis, retry_after=after, now=NOW) == wait_s


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("after", IN_30_S.values(), ids=IN_30_S)
def test_retry_after_date_formats_are_read_as_utc(after):
    assert retry_after_s(retry_after_ms=None, retry_after=after, now=NOW) == 30


@given(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)), st.integers(-9999, 9999))
def test_retry_after_date_gives_seconds_until_then_or_zero(date, ahead_s):
    date = date.replace(microsecond=0)
    wait_s = retry_after_s(
        retry_after_ms=None, retry_after=format_datetime(date, usegmt=True), now=date.timestamp() - ahead_s
    )
    assert wait_s == max(0, ahead_s)


@given(st.none() | st.text(), st.none() | st.text())
def test_retry_after_with_arbitrary_text_is_none_or_nonnegative(millis, after):
    wait_s = retry_after_s(retry_after_ms=millis, retry_after=after, now=NOW)
    assert wait_s is None or wait_s >= 0

"""Numbers, times and foreign text as people read them."""

import pytest

from batchline.models.formatting import (
    format_age,
    format_day,
    format_duration,
    format_money,
    format_rate,
    format_size,
    format_span,
    replace_controls,
    shorten,
    strip_controls,
)

SPANS = {
    0.4: "0 s",
    59.4: "59 s",
    59.6: "1 min 00 s",
    61: "1 min 01 s",
    3_599: "59 min 59 s",
    7_505: "2 h 05 min",
    86_399.9: "1 d 0 h",
    8_640_000_000: "100,000 d 0 h",
}


@pytest.mark.parametrize(("seconds", "words"), SPANS.items(), ids=SPANS.values())
def test_span_shows_two_largest_units(seconds, words):
    assert format_span(seconds) == words


SPEEDS = {
    0.005: "18/h",
    0.05: "3/min",
    0.99: "59/min",
    1.0: "1/s",
    9.94: "9.9/s",
    10.0: "10/s",
    12_345.6: "12.3 k/s",
}


@pytest.mark.parametrize(("per_s", "words"), SPEEDS.items(), ids=SPEEDS.values())
def test_low_speed_is_shown_per_minute_or_hour(per_s, words):
    assert format_rate(per_s) == words


def test_durations_sizes_and_money_keep_small_values():
    assert [format_duration(ms) for ms in (0.25, 12.3, 1_234, 61_000)] == [
        "0.25 ms",
        "12 ms",
        "1.23 s",
        "1 min 01 s",
    ]
    assert [format_age(s) for s in (-1, 5, 200, 7_300, 3 * 86_400)] == ["0 s", "5 s", "3 min", "2 h", "3 d"]
    assert [format_size(length) for length in (999, 1_500, 2_500_000_000)] == ["999 B", "1.5 kB", "2.5 GB"]
    assert [format_money(amount, "USD") for amount in ("1234.5", "0.000012345", "0")] == [
        "1,234.50 USD",
        "0.0000123 USD",
        "0.00 USD",
    ]


HOSTILE = "a\x1b[31m\u202eb\nc\x00"


def test_control_characters_in_text_are_replaced():
    assert strip_controls(HOSTILE) == "a [31m b c "
    assert (
        replace_controls(HOSTILE)
        == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\nc\N{REPLACEMENT CHARACTER}"
    )
    assert shorten(HOSTILE * 5, 10) == "a [31m b …"


def test_out_of_range_time_is_shown_as_dash():
    assert (format_day(0), format_day(1e20)) == ("1 Jan 1970, 00:00", "\N{EN DASH}")

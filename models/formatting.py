"""Formats numbers, times, amounts of money and untrusted text for people."""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Final

NOTHING: Final = "\N{EN DASH}"
"""Shown in place of a missing value."""

UNITS_S: Final = (("d", 86_400), ("h", 3_600), ("min", 60))

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_CONTROLS_IN_LINES: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, reverse the text direction, or cannot be encoded."""


def format_count(number: float | None) -> str:
    """Format a number without decimals, with thousands separators."""
    return NOTHING if number is None or not isfinite(number) else f"{number:,.0f}"


def format_compact(number: int) -> str:
    """Format a number with at most four significant characters."""
    for unit, least, name in ((10**9, 10**9, "G"), (10**6, 10**6, "M"), (10**3, 10**4, "k")):
        if number >= least:
            return f"{number / unit:.3g} {name}" if number < 999.5 * unit else f"{number / unit:,.0f} {name}"
    return format_count(number)


def format_size(length: int) -> str:
    """Format a number of bytes with a decimal unit, up to GB."""
    value = float(length)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:,.1f} GB"


def format_share(part: float, whole: float) -> str:
    """Format a share as a percentage; only zero shows as 0 % and only the whole as 100 %."""
    per_cent = 100 * part / whole if whole else 0.0
    if 0 < per_cent < 0.1:
        return "<0.1 %"
    if 99.9 < per_cent < 100:
        return ">99.9 %"
    return f"{per_cent:.1f} %".replace(".0 %", " %")


def format_duration(ms: float | None) -> str:
    """Format a duration given in milliseconds."""
    if ms is None or not isfinite(ms):
        return NOTHING
    if ms >= 60_000:
        return format_span(ms / 1e3)
    if ms >= 1_000:
        return f"{ms / 1e3:.3g} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def format_span(seconds: float) -> str:
    """Format a duration in its two largest units."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24:,} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest_s:02} s" if minutes else f"{rest_s} s"


def format_age(seconds: float) -> str:
    """Format a duration in its largest unit, rounded down."""
    for unit, length in UNITS_S:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def format_rate(per_s: float) -> str:
    """Format a rate, per minute or per hour if it is low."""
    if not isfinite(per_s):
        return NOTHING
    unit_s, name = choose_rate_unit(per_s)
    return f"{format_compact(round(per_s * unit_s)) if per_s * unit_s >= 10 else f'{per_s * unit_s:.2g}'}/{name}"


def choose_rate_unit(per_s: float) -> tuple[int, str]:
    """Return the seconds and the name of the smallest time unit with a rate of at least one, or the hour."""
    return next(((s, name) for s, name in ((1, "s"), (60, "min")) if per_s * s >= 1), (3_600, "h"))


def format_time(at: float | None) -> str:
    """Format Unix seconds as date and time with seconds."""
    return _utc(at, "%-d %b %Y, %H:%M:%S UTC")


def format_day(at: float) -> str:
    """Format Unix seconds as date and time, in short form for tables."""
    return _utc(at, "%-d %b %Y, %H:%M")


def format_clock(at: float | None) -> str:
    """Format Unix seconds as time of day."""
    return _utc(at, "%H:%M:%S")


def format_iso(at: float | None) -> str:
    """Format Unix seconds as ISO 8601."""
    return _utc(at, "%Y-%m-%dT%H:%M:%SZ")


def _utc(at: float | None, form: str) -> str:
    if at is None:
        return NOTHING
    try:
        return datetime.fromtimestamp(at, UTC).strftime(form)
    except (OverflowError, OSError, ValueError):
        return NOTHING


def format_money(amount: str, currency: str | None) -> str:
    """Format an exact amount with two decimal places, or three significant digits if it is below one."""
    try:
        exact = Decimal(amount)
        short = f"{exact:,.2f}" if abs(exact) >= 1 or not exact else f"{Decimal(f'{exact:.3g}'):f}"
    except InvalidOperation:
        short = shorten(amount, 40)
    return f"{short} {currency or ''}".rstrip()


def join_parts(*parts: object) -> str:
    """Join the parts that are not empty with middle dots."""
    return " · ".join(str(part) for part in parts if part)


def strip_controls(text: str) -> str:
    """Return untrusted text with control characters and line breaks replaced by spaces."""
    return _CONTROLS.sub(" ", text)


def shorten(text: object, most: int) -> str:
    """Return untrusted text on one line, truncated to `most` characters."""
    # Slice first: the text may be a response of many megabytes.
    shortened = " ".join(strip_controls(str(text)[: 4 * most]).split())
    return shortened if len(shortened) <= most and len(str(text)) <= 4 * most else f"{shortened[: most - 1]}…"


def replace_controls(text: str) -> str:
    """Return untrusted text with line breaks kept and other control characters replaced."""
    return _CONTROLS_IN_LINES.sub("\N{REPLACEMENT CHARACTER}", text)

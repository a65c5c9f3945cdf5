"""Figures, times and foreign text as the page shows them."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import accumulate
from math import isfinite
from typing import Any, Final

from batchline.models.analytics import BatchReport
from batchline.models.failures import ErrorCode
from batchline.steps import meter
from batchline.storage.records import BatchRecord

NOTHING: Final = "\N{EN DASH}"
TIMES: Final = "\u202f\N{MULTIPLICATION SIGN}\u202f"
"""Between spaces at which no line breaks."""

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
"""What has no look of its own, or could turn the order of the words around."""

MEANINGS: Final[Mapping[str, str]] = {
    ErrorCode.INVALID_REQUEST: "the server refused the request",
    ErrorCode.RATE_LIMITED: "too many requests, to the last attempt",
    ErrorCode.SERVER_ERROR: "the server failed, to the last attempt",
    ErrorCode.TIMEOUT: "no answer in time, to the last attempt",
    ErrorCode.CONNECTION_ERROR: "the connection failed, to the last attempt",
    ErrorCode.INVALID_RESPONSE: "an answer that is none, to the last attempt",
    ErrorCode.BATCH_EXPIRED: "not answered when the window closed",
    ErrorCode.BATCH_CANCELLED: "not answered when the batch was cancelled",
    ErrorCode.BATCH_FAILED: "not sent, as the server refused everything",
}

UNANSWERED: Final[Mapping[str, str]] = {
    ErrorCode.BATCH_CANCELLED: "cancelled",
    ErrorCode.BATCH_EXPIRED: "expired",
}
"""Codes of requests that had no answer when the batch ended, which is no failure, and the word for them."""


def count(number: float | None) -> str:
    """A whole number with its thousands marked off."""
    return NOTHING if number is None or not isfinite(number) else f"{number:,.0f}"


def compact(number: int) -> str:
    """A number in at most four places."""
    for unit, least, name in ((10**9, 10**9, "G"), (10**6, 10**6, "M"), (10**3, 10**4, "k")):
        if number >= least:
            return f"{number / unit:.3g} {name}" if number < 999.5 * unit else f"{number / unit:,.0f} {name}"
    return count(number)


def share(part: float, whole: float) -> str:
    """Per cent; what is little is not made nothing, nor what is nearly all made all."""
    per_cent = 100 * part / whole if whole else 0.0
    if 0 < per_cent < 0.1:
        return "<0.1 %"
    if 99.9 < per_cent < 100:
        return ">99.9 %"
    return f"{per_cent:.1f} %".replace(".0 %", " %")


def duration(ms: float | None) -> str:
    """A length of time that was measured in milliseconds."""
    if ms is None or not isfinite(ms):
        return NOTHING
    if ms >= 60_000:
        return span(ms / 1e3)
    if ms >= 1_000:
        return f"{ms / 1e3:.3g} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    days, rest_s = divmod(round(seconds), 86_400)
    return f"{days:,} d {rest_s // 3_600} h" if days else meter.span(seconds)


def speed(per_s: float) -> str:
    """A rate, by the minute or the hour where it is low."""
    if not isfinite(per_s):
        return NOTHING
    unit_s, name = rate_unit(per_s)
    return f"{compact(round(per_s * unit_s)) if per_s * unit_s >= 10 else f'{per_s * unit_s:.2g}'}/{name}"


def rate_unit(per_s: float) -> tuple[int, str]:
    """The time by which a rate makes a number that is not below one: its length in seconds, and its name."""
    return next(((s, name) for s, name in ((1, "s"), (60, "min")) if per_s * s >= 1), (3_600, "h"))


def moment(at: float | None) -> str:
    """Date and time of day of Unix seconds."""
    return _utc(at, "%-d %b %Y, %H:%M:%S UTC")


def clock(at: float | None) -> str:
    """Time of day of Unix seconds."""
    return _utc(at, "%H:%M:%S")


def iso(at: float | None) -> str:
    """Unix seconds as programs read them."""
    return _utc(at, "%Y-%m-%dT%H:%M:%SZ")


def _utc(at: float | None, form: str) -> str:
    if at is None:
        return NOTHING
    try:
        return datetime.fromtimestamp(at, UTC).strftime(form)
    except (OverflowError, OSError, ValueError):
        return NOTHING


def money(amount: str, currency: str | None) -> str:
    """An exact amount in few places; a small one is not made nothing."""
    try:
        exact = Decimal(amount)
        short = f"{exact:,.2f}" if abs(exact) >= 1 or not exact else f"{Decimal(f'{exact:.3g}'):f}"
    except InvalidOperation:
        short = plain(amount, 40)
    return f"{short} {currency or ''}".rstrip()


def cost_each(amount: str, number: int, currency: str | None) -> str:
    """What one of so many costs."""
    return money(str(Decimal(amount) / number), currency)


def plain(text: object, most: int) -> str:
    """Somebody's text on one line, cut to so many characters."""
    found = " ".join(_UNSEEN.sub(" ", str(text)[: 4 * most]).split())
    return found if len(found) <= most and len(str(text)) <= 4 * most else f"{found[: most - 1]}…"


def statuses(counts: Mapping[int, int]) -> str:
    """HTTP statuses and how often each came; 0 stands for no answer."""
    named = {str(status or "no\u202fanswer"): number for status, number in counts.items()}
    return ", ".join(f"{status}{TIMES}{number:,}" for status, number in named.items())


def outcome(batch: BatchRecord, report: BatchReport) -> str:
    """Say in a sentence how the batch's requests ended."""
    total, completed, rest = batch.total, batch.completed, unanswered(report)
    failed = total - completed - sum(rest.values())
    if completed == total:
        return "The one request was answered." if total == 1 else f"All {total:,} requests were answered."
    ends = [
        f"{number:,} expired" if word == "expired" else f"{number:,} {'was' if number == 1 else 'were'} {word}"
        for word, number in rest.items()
    ]
    if failed:
        ends.insert(0, f"{failed:,} failed")
    if total == 1:
        return f"The one request {ends[0].removeprefix('1 ')}."
    if not completed:
        told = f"None of the {total:,} requests was answered"
        return f"{told}." if failed == total else f"{told}: {', '.join(ends)}."
    return (
        f"{completed:,} of {total:,} requests {'was' if completed == 1 else 'were'} answered, {', '.join(ends)}."
    )


def unanswered(report: BatchReport | None) -> dict[str, int]:
    """Return how many requests ended without an answer that are no failures, by the word for them."""
    failures = report.failures if report is not None else {}
    return {word: failures[code] for code, word in UNANSWERED.items() if failures.get(code)}


def stretches(shares: Sequence[tuple[float, str]], whole: float, least: float) -> list[tuple[str, float, float]]:
    """Return class, left edge and width of a bar's parts, in per cent; none that is not 0 is below `least`."""
    there = [(name, part) for part, name in shares if part > 0 and whole > 0]
    whole = max(whole, sum(part for _, part in there))
    widths = [max(100 * part / whole, least) for _, part in there]
    if (over := sum(widths) - 100) > 0:  # the largest part gives what the small ones were widened by
        widths[widths.index(max(widths))] -= over
    lefts = accumulate(widths, initial=0.0)
    return [
        (name, round(left, 2), round(width, 2))
        for (name, _), left, width in zip(there, lefts, widths, strict=False)
    ]


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "clock": clock,
    "compact": compact,
    "cost_each": cost_each,
    "count": count,
    "duration": duration,
    "iso": iso,
    "moment": moment,
    "money": money,
    "plain": plain,
    "share": share,
    "span": span,
    "speed": speed,
    "statuses": statuses,
    "stretches": stretches,
}

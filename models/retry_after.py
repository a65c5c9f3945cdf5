"""Reads the delay that a 429 or 503 asks for, in all forms that servers use. No clock, no sleep.

Sources: RFC 9110, 10.2.3 (`Retry-After`); the pages on rate limits of OpenAI, Azure OpenAI (`retry-after-ms`),
Groq, Anthropic (`anthropic-ratelimit-*`) and OpenRouter (`x-ratelimit-reset`); google.rpc.RetryInfo
(`retryDelay`).
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

MAX_DELAY_S: Final = 3_600.0
"""Longer delays are shortened to this: an hour later, one request shows if the server still asks for it."""

HEADER_PREFIXES: Final = ("retry-after", "x-ratelimit-", "anthropic-ratelimit-")
"""Starts of the names of all headers that are read, in lower case."""

_MAX_SCANNED_BYTES: Final = 2**16
_MAX_VALUE_CHARACTERS: Final = 200
_MIN_EPOCH_S: Final = 1e9
"""Numbers from here on are points in time (2001 and later), not durations."""

_MIN_EPOCH_MS: Final = 1e11
_MAX_EPOCH_MS: Final = 1e14
_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3_600.0,
    "hr": 3_600.0,
    "hour": 3_600.0,
    "d": 86_400.0,
    "day": 86_400.0,
}
_NUMBER: Final = re.compile(r"\d{1,20}(?:\.\d{0,20})?", re.ASCII)
_STEP: Final = (
    r"\d{1,12}(?:\.\d{1,12})?\s*"
    r"(?:ns|us|µs|ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
)
_DURATION: Final = re.compile(rf"{_STEP}(?:[\s,]*(?:and\s+)?{_STEP})*", re.IGNORECASE | re.ASCII)
_DURATION_STEP: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)", re.IGNORECASE)
_RETRY_DELAY: Final = re.compile(rb'"retryDelay\\*"\s*:\s*\\*"([^"\\]{1,40})')
_SENTENCE: Final = re.compile(
    r"\b(?:try again|retry|wait)\b(?: your request)?\s+(?:in|after|for)\s+(?:about\s+)?"
    rf"({_STEP}(?:\s*{_STEP})*|\d{{1,12}}(?:\.\d{{1,12}})?)",
    re.IGNORECASE | re.ASCII,
)


class RequestedDelay(NamedTuple):
    """The delay that a reply asks for, in seconds, and the header or part of the body that asks for it.

    `requested_s` is more than `delay_s` if it is over the cap of an hour: log that.
    """

    delay_s: float
    requested_s: float
    source: str

    @property
    def is_capped(self) -> bool:
        """Return True if the server asks for more than an hour."""
        return self.requested_s > self.delay_s


def requested_delay(headers: Iterable[tuple[str, str]], body: bytes, now: float) -> RequestedDelay | None:
    """Return the longest delay that the headers and the body ask for; None if they ask for none that makes sense.

    `headers` may have a name several times. `now` is in Unix seconds. Negative delays and times in the past are
    ignored.
    """
    delays = [
        (delay_s, source) for delay_s, source in (*_of_headers(headers, now), *_of_body(body)) if delay_s >= 0
    ]
    if not delays:
        return None
    requested_s, source = max(delays)
    return RequestedDelay(min(requested_s, MAX_DELAY_S), requested_s, source)


def parse_delay_s(text: str, now: float) -> float | None:
    """Return the seconds that a header's value stands for; None if it is not understood or in the past.

    It may be seconds, a duration (`1m30s`, `500ms`), an HTTP date, an ISO 8601 time or Unix seconds.
    """
    text = text.strip()
    if len(text) > _MAX_VALUE_CHARACTERS:
        return None
    if _NUMBER.fullmatch(text):
        return _of_number(float(text), now)
    if _DURATION.fullmatch(text):
        return _of_duration(text)
    if (moment := _parse_date(text)) is None:
        return None
    # Of the forms, asctime's and ISO 8601 may have no time zone; they mean UTC, not local time.
    delay_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    return delay_s if delay_s >= 0 else None


def _of_headers(headers: Iterable[tuple[str, str]], now: float) -> Iterator[tuple[float, str]]:
    """Yield each delay in the headers with the name of its header."""
    fields = [(name.lower(), value) for name, value in headers]
    known = dict(fields)
    for name, value in fields:
        if name == "retry-after-ms":
            if _NUMBER.fullmatch(value.strip()):
                yield float(value) / 1_000, name
        elif name == "retry-after" or _is_spent_budget(name, known):
            delays = (parse_delay_s(item, now) for item in (value, *value.split(",")))
            yield from ((delay_s, name) for delay_s in delays if delay_s is not None)


def _is_spent_budget(name: str, headers: dict[str, str]) -> bool:
    """Return True for the reset of a budget of which nothing remains."""
    if name.startswith("x-ratelimit-reset"):
        remaining = headers.get(name.replace("-reset", "-remaining", 1))
        return remaining is not None and _is_zero(remaining)
    if name.startswith("anthropic-ratelimit-") and name.endswith("-reset"):
        remaining = headers.get(f"{name.removesuffix('-reset')}-remaining")
        return remaining is None or _is_zero(remaining)
    return False


def _is_zero(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None and float(text) == 0


def _of_body(body: bytes) -> Iterator[tuple[float, str]]:
    """Yield each delay in the body: Google's `retryDelay`, and sentences such as "try again in 20s"."""
    start = body[:_MAX_SCANNED_BYTES]
    for match in _RETRY_DELAY.finditer(start):
        delay = match[1].decode(errors="replace").strip()
        if _DURATION.fullmatch(delay):
            yield _of_duration(delay), "retryDelay"
    for sentence in _SENTENCE.finditer(start.decode(errors="replace")):
        delay = sentence[1]
        yield float(delay) if _NUMBER.fullmatch(delay) else _of_duration(delay), "message"


def _of_number(number: float, now: float) -> float | None:
    """Return the delay of a plain number: seconds, or a point in time in Unix seconds or milliseconds."""
    if number < _MIN_EPOCH_S:
        return number
    if number >= _MAX_EPOCH_MS:
        return None
    delay_s = (number if number < _MIN_EPOCH_MS else number / 1_000) - now
    return delay_s if delay_s >= 0 else None


def _of_duration(text: str) -> float:
    return sum(float(number) * _unit_s(unit.lower()) for number, unit in _DURATION_STEP.findall(text))


def _unit_s(unit: str) -> float:
    return _UNIT_S[unit] if unit in _UNIT_S else _UNIT_S[unit.removesuffix("s")]


def _parse_date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None

"""How long to wait before the next attempt: pure arithmetic, no clock, no sleep."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random


def backoff_s(attempt: int, *, base_s: float, cap_s: float, random: Random) -> float:
    """Seconds to wait after that failed attempt (from 1): exponential with full jitter.

    Uniform over `[0, min(cap, base · 2^(attempt-1)]`: Marc Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.
    """
    return random.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt - 1, 62)))


def retry_after_s(*, millis: str | None, after: str | None, now: float) -> float | None:
    """Seconds that an answer's headers ask to wait; none where they ask nothing or are not understood.

    `millis` is `retry-after-ms`, `after` is `Retry-After` in seconds or as an HTTP date (RFC 9110, 10.2.3);
    `now` is in Unix seconds. Never negative.
    """
    if (wait_ms := _number(millis)) is not None:
        return max(0.0, wait_ms / 1000.0)
    if after is None:
        return None
    if (wait_s := _number(after)) is not None:
        return max(0.0, wait_s)
    try:
        date = parsedate_to_datetime(after)
    except (ValueError, TypeError, OverflowError):
        return None
    # The oldest of the three forms of a date names no zone; it means UTC, not the machine's.
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.0 <= number < 1e9 else None

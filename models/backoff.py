"""Computes the wait before the next attempt, without clock or sleep."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random


def backoff_s(attempt: int, *, base_s: float, cap_s: float, random: Random) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 1): exponential with full jitter.

    Uniform over `[0, min(cap, base · 2^(attempt-1)]`: Marc Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.
    """
    # The exponent is capped because 2.0 ** 1024 raises OverflowError.
    return random.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt - 1, 62)))


def retry_after_s(*, retry_after_ms: str | None, retry_after: str | None, now: float) -> float | None:
    """Return the seconds, at least 0, that a response's headers ask to wait; None if absent or not understood.

    `retry_after_ms` takes precedence over `retry_after`, which is in seconds or an HTTP date (RFC 9110, 10.2.3).
    `now` is in Unix seconds.
    """
    if (wait_ms := _parse_number(retry_after_ms)) is not None:
        return max(0.0, wait_ms / 1000.0)
    if retry_after is None:
        return None
    if (wait_s := _parse_number(retry_after)) is not None:
        return max(0.0, wait_s)
    try:
        retry_at = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError, OverflowError):
        return None
    # The oldest of the three HTTP date formats (asctime) has no time zone; it means UTC, not local time.
    return max(0.0, (retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=UTC)).timestamp() - now)


def _parse_number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    # NaN and infinity fail these comparisons.
    return number if 0.0 <= number < 1e9 else None

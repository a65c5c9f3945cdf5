"""Computes the wait before the next attempt, without clock or sleep."""

from random import Random


def backoff_s(attempt: int, *, base_s: float, cap_s: float, random: Random) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 1): exponential with full jitter.

    Uniform over `[0, min(cap, base · 2^(attempt-1)]`: Marc Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.
    """
    # The exponent is capped because 2.0 ** 1024 raises OverflowError.
    return random.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt - 1, 62)))

"""The caps of a pool as seen by quota sharing: measures their use and demand, and applies this process's share.

Used on the dispatcher's loop.
"""

import asyncio
import time
from collections.abc import Iterator
from math import ceil
from typing import Final, Protocol

import msgspec

from batchline.upstream.pool import UpstreamPool
from batchline.upstream.rate_limits import PERIOD_S, SlidingWindowLimit

THROTTLED_WITHIN_S: Final = 60.0
"""Seconds without throttling after which the demand falls to the actual use."""


class Demand(msgspec.Struct, frozen=True):
    """Slots in use, slots that could be used, and slots that a single request needs."""

    used: int
    desired: int
    minimum: int = 1


class QuotaTarget(Protocol):
    """One cap of a pool."""

    kind: str
    description: str
    cap: int
    window_s: float
    """Seconds for which slots stay in use after a request is sent; 0 if until its reply."""

    def used(self) -> int:
        """Return the slots that cannot be released yet."""

    def demand(self, *, has_work: bool) -> Demand:
        """Return the current demand."""

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Limit the pool to `held_slots`, on the way to `target_slots`; None restores the whole cap."""


class _DemandEstimator:
    """Estimates demand: all of a cap that throttles; else, after a while, a little more than is used."""

    def __init__(self) -> None:
        self._last_throttled_at = float("-inf")
        self._had_work = False

    def estimate(self, maximum: int, used: int, *, is_throttled: bool, has_work: bool) -> int:
        now = time.monotonic()
        # New work counts as throttled, since its need is not known yet.
        if is_throttled or (has_work and not self._had_work):
            self._last_throttled_at = now
        self._had_work = has_work
        return (
            maximum if now - self._last_throttled_at < THROTTLED_WITHIN_S else min(maximum, used + used // 4 + 1)
        )


class InFlightQuota:
    """The cap of requests in flight."""

    kind = "in-flight"
    description = "requests at once"
    window_s = 0.0

    def __init__(self, pool: UpstreamPool) -> None:
        self.cap = pool.upstream.max_in_flight
        self._pool = pool
        self._estimator = _DemandEstimator()

    def used(self) -> int:
        """Return the number of requests in flight."""
        return len(self._pool.scheduler.in_flight_calls)

    def demand(self, *, has_work: bool) -> Demand:
        """Return the demand: the adaptive limit while calls are pending, then the requests in flight."""
        limit, used = self._pool.limit, self.used()
        has_pending = self._pool.scheduler.has_pending()
        is_throttled = has_pending and used >= limit.value
        desired = self._estimator.estimate(limit.demand, used, is_throttled=is_throttled, has_work=has_work)
        return Demand(used, desired if has_pending else used)

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Limit the requests in flight to the lower of held and target slots."""
        self._pool.limit.set_cap(None if held_slots is None else min(held_slots, target_slots))
        self._pool.wake_workers(self._pool.limit.value)


class PerMinuteQuota:
    """A cap of requests or tokens per minute.

    While a share shrinks, the held slots may still be spent, but at the rate of the target. So slots become free
    for others one after another as they leave the window, and no process has to stop sending meanwhile.
    """

    window_s = PERIOD_S

    def __init__(
        self, kind: str, description: str, cap: int, rate_limit: SlidingWindowLimit, pool: UpstreamPool
    ) -> None:
        self.kind = kind
        self.description = description
        self.cap = cap
        self._rate_limit = rate_limit
        self._pool = pool
        self._estimator = _DemandEstimator()

    def used(self) -> int:
        """Return what was spent in the minute that ends now."""
        return self._rate_limit.spent_units(_loop_time())

    def demand(self, *, has_work: bool) -> Demand:
        """Return the demand: the cap while requests wait for it, 0 without work."""
        used, waiting_units = self.used(), ceil(self._rate_limit.waiting_units)
        desired = self._estimator.estimate(self.cap, used, is_throttled=waiting_units > 0, has_work=has_work)
        return Demand(used, desired if has_work else 0, max(1, waiting_units))

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Limit a minute to the held slots, spent at the rate of the target."""
        self._rate_limit.set_cap(held_slots, _loop_time(), pace=target_slots)
        self._pool.wake_workers(self._pool.limit.value)


def _loop_time() -> float:
    """Return the time on the clock that the pool's rate limits use."""
    return asyncio.get_running_loop().time()


def quota_targets(pool: UpstreamPool) -> Iterator[QuotaTarget]:
    """Yield the configured caps of the pool."""
    upstream, rate_limits = pool.upstream, pool.scheduler.rate_limits
    if rate_limits.requests is not None and upstream.requests_per_minute is not None:
        yield PerMinuteQuota(
            "requests-per-minute", "requests a minute", upstream.requests_per_minute, rate_limits.requests, pool
        )
    if rate_limits.tokens is not None and upstream.tokens_per_minute is not None:
        yield PerMinuteQuota(
            "tokens-per-minute", "tokens a minute", upstream.tokens_per_minute, rate_limits.tokens, pool
        )
    yield InFlightQuota(pool)

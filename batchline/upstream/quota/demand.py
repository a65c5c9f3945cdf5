"""The caps of a pool as seen by quota sharing: measures their use and demand, and applies this process's share.

Used on the dispatcher's loop.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import ceil
from typing import Final

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


class QuotaTarget(ABC):
    """One cap of a pool; slots stay in use for `window_s` after a request is sent, or until its reply if 0."""

    def __init__(self, kind: str, description: str, cap: int, window_s: float, pool: UpstreamPool) -> None:
        self.kind = kind
        self.description = description
        self.cap = cap
        self.window_s = window_s
        self._pool = pool
        self._last_throttled_at = float("-inf")
        self._had_work = False

    @abstractmethod
    def used(self) -> int:
        """Return the slots that cannot be released yet."""

    @abstractmethod
    def demand(self, *, has_work: bool) -> Demand:
        """Return the current demand."""

    @abstractmethod
    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Limit the pool to `held_slots`, on the way to `target_slots`; None restores the whole cap."""

    def _estimate_demand(self, maximum: int, used: int, *, is_throttled: bool, has_work: bool) -> int:
        """Return `maximum` if the cap throttles; else, after a while, a little more than is used."""
        now = time.monotonic()
        # New work counts as throttled, since its need is not known yet.
        if is_throttled or (has_work and not self._had_work):
            self._last_throttled_at = now
        self._had_work = has_work
        is_limited = now - self._last_throttled_at < THROTTLED_WITHIN_S
        return maximum if is_limited else min(maximum, used + used // 4 + 1)


class InFlightQuota(QuotaTarget):
    """The cap of requests in flight."""

    def __init__(self, pool: UpstreamPool) -> None:
        super().__init__("in-flight", "requests in flight", pool.upstream.max_in_flight, 0.0, pool)

    def used(self) -> int:
        """Return the number of requests in flight."""
        return len(self._pool.scheduler.in_flight_calls)

    def demand(self, *, has_work: bool) -> Demand:
        """Return the demand: the adaptive limit while calls are pending, then the requests in flight."""
        limit, used = self._pool.limit, self.used()
        has_pending = self._pool.scheduler.has_pending()
        is_throttled = has_pending and used >= limit.value
        desired = self._estimate_demand(limit.demand, used, is_throttled=is_throttled, has_work=has_work)
        return Demand(used, desired if has_pending else used)

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Limit the requests in flight to the lower of held and target slots."""
        self._pool.limit.set_cap(None if held_slots is None else min(held_slots, target_slots))
        self._pool.wake_workers(self._pool.limit.value)


class PerMinuteQuota(QuotaTarget):
    """A cap of requests or tokens per minute.

    While a share shrinks, the held slots may still be spent, but at the rate of the target. So slots become free
    for others one after another as they leave the window, and no process has to stop sending meanwhile.
    """

    def __init__(self, unit: str, cap: int, rate_limit: SlidingWindowLimit, pool: UpstreamPool) -> None:
        super().__init__(f"{unit}-per-minute", f"{unit} per minute", cap, PERIOD_S, pool)
        self._rate_limit = rate_limit

    def used(self) -> int:
        """Return what was spent in the minute that ends now."""
        return self._rate_limit.spent_units(_loop_time())

    def demand(self, *, has_work: bool) -> Demand:
        """Return the demand: the cap while requests wait for it, 0 without work."""
        used, waiting_units = self.used(), ceil(self._rate_limit.waiting_units)
        desired = self._estimate_demand(self.cap, used, is_throttled=waiting_units > 0, has_work=has_work)
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
        yield PerMinuteQuota("requests", upstream.requests_per_minute, rate_limits.requests, pool)
    if rate_limits.tokens is not None and upstream.tokens_per_minute is not None:
        yield PerMinuteQuota("tokens", upstream.tokens_per_minute, rate_limits.tokens, pool)
    yield InFlightQuota(pool)

"""A lane's caps as they are shared out: what is used and wanted of each, and how much may be.

Used on the caller's loop.
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
"""A cap that has held nothing back for so long is wanted only as far as it is used."""


class Demand(msgspec.Struct, frozen=True):
    """Slots that are used, slots that could be, and how many a single request needs."""

    used: int
    desired: int
    minimum: int = 1


class QuotaTarget(Protocol):
    """One cap of a lane."""

    kind: str
    description: str
    cap: int
    window_s: float
    """So long what was used counts on."""

    def used(self) -> int:
        """Slots that cannot be given back yet."""

    def demand(self, *, has_work: bool) -> Demand:
        """What is used and wanted."""

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Go on with that many slots, which are to become `target`; None is the whole cap."""


class _DemandEstimator:
    """Wants all of a cap that holds something back; else, after a while, a little more than is used."""

    def __init__(self) -> None:
        self._last_throttled_at = float("-inf")
        self._had_work = False

    def estimate(self, maximum: int, used: int, *, is_throttled: bool, has_work: bool) -> int:
        now = time.monotonic()
        if is_throttled or (has_work and not self._had_work):
            self._last_throttled_at = now
        self._had_work = has_work
        return (
            maximum if now - self._last_throttled_at < THROTTLED_WITHIN_S else min(maximum, used + used // 4 + 1)
        )


class InFlightQuota:
    """Requests under way at once."""

    kind = "in-flight"
    description = "requests at once"
    window_s = 0.0

    def __init__(self, pool: UpstreamPool) -> None:
        self.cap = pool.upstream.max_in_flight
        self._pool = pool
        self._estimator = _DemandEstimator()

    def used(self) -> int:
        """Requests under way."""
        return len(self._pool.in_flight_calls)

    def demand(self, *, has_work: bool) -> Demand:
        """Up to the adaptive limit while calls are pending; no more than are under way after the last of them."""
        limit, used = self._pool.limit, self.used()
        has_pending = self._pool.has_pending()
        is_throttled = has_pending and used >= limit.value
        desired = self._estimator.estimate(limit.demand, used, is_throttled=is_throttled, has_work=has_work)
        return Demand(used, desired if has_pending else used)

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Send no more at once than are held and to be held."""
        self._pool.limit.set_cap(None if held_slots is None else min(held_slots, target_slots))
        self._pool.wake_workers(self._pool.limit.value)


class PerMinuteQuota:
    """Requests to start, or tokens to spend, in a minute.

    While a share shrinks, what is left of it may still be spent, at the smaller one's pace: as the last minute is
    forgotten, slot after slot becomes free for others, and neither they nor this process stand still meanwhile.
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
        """What was spent in the minute that ends now."""
        return self._rate_limit.spent_units(_loop_time())

    def demand(self, *, has_work: bool) -> Demand:
        """The cap while requests wait for it; nothing without work."""
        used, waiting_units = self.used(), ceil(self._rate_limit.waiting_units)
        desired = self._estimator.estimate(self.cap, used, is_throttled=waiting_units > 0, has_work=has_work)
        return Demand(used, desired if has_work else 0, max(1, waiting_units))

    def apply(self, held_slots: int | None, target_slots: int) -> None:
        """Spend no more in a minute than is held, at the pace of what is to be."""
        self._rate_limit.set_cap(held_slots, _loop_time(), pace=target_slots)
        self._pool.wake_workers(self._pool.limit.value)


def _loop_time() -> float:
    """The time as the lane's caps are told it."""
    return asyncio.get_running_loop().time()


def quota_targets(pool: UpstreamPool) -> Iterator[QuotaTarget]:
    """The caps that the lane has."""
    upstream, rate_limits = pool.upstream, pool.rate_limits
    if rate_limits.requests is not None and upstream.requests_per_minute is not None:
        yield PerMinuteQuota(
            "requests-per-minute", "requests a minute", upstream.requests_per_minute, rate_limits.requests, pool
        )
    if rate_limits.tokens is not None and upstream.tokens_per_minute is not None:
        yield PerMinuteQuota(
            "tokens-per-minute", "tokens a minute", upstream.tokens_per_minute, rate_limits.tokens, pool
        )
    yield InFlightQuota(pool)

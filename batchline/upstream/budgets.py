"""A lane's caps as they are shared out: what is used and wanted of each, and how much may be.

Used on the caller's loop.
"""

import asyncio
import time
from collections.abc import Iterator
from math import ceil
from typing import Final, Protocol

import msgspec

from batchline.upstream.lane import Lane
from batchline.upstream.rates import PERIOD_S, Cap

MODEST_AFTER_S: Final = 60.0
"""A cap that has held nothing back for so long is wanted only as far as it is used."""


class Demand(msgspec.Struct, frozen=True):
    """Slots that are used, slots that could be, and how many a single request needs."""

    used: int
    wanted: int
    least: int = 1


class Budget(Protocol):
    """One cap of a lane."""

    what: str
    words: str
    cap: int
    counts_for_s: float
    """So long what was used counts on."""

    def used(self) -> int:
        """Slots that cannot be given back yet."""

    def demand(self, *, has_work: bool) -> Demand:
        """What is used and wanted."""

    def allot(self, held: int | None, target: int) -> None:
        """Go on with that many slots, which are to become `target`; None is the whole cap."""


class _Appetite:
    """Wants all of a cap that holds something back; else, after a while, a little more than is used."""

    def __init__(self) -> None:
        self._held_back_at = float("-inf")
        self._had_work = False

    def wanted(self, most: int, used: int, *, held_back: bool, has_work: bool) -> int:
        now = time.monotonic()
        if held_back or (has_work and not self._had_work):
            self._held_back_at = now
        self._had_work = has_work
        return most if now - self._held_back_at < MODEST_AFTER_S else min(most, used + used // 4 + 1)


class InFlight:
    """Requests under way at once."""

    what = "in-flight"
    words = "requests at once"
    counts_for_s = 0.0

    def __init__(self, lane: Lane) -> None:
        self.cap = lane.upstream.max_in_flight
        self._lane = lane
        self._appetite = _Appetite()

    def used(self) -> int:
        """Requests under way."""
        return len(self._lane.active)

    def demand(self, *, has_work: bool) -> Demand:
        """Up to the adaptive limit while calls are pending; no more than are under way after the last of them."""
        limit, used = self._lane.limit, self.used()
        pending = self._lane.has_pending()
        held_back = pending and used >= limit.value
        wanted = self._appetite.wanted(limit.wanted, used, held_back=held_back, has_work=has_work)
        return Demand(used, wanted if pending else used)

    def allot(self, held: int | None, target: int) -> None:
        """Send no more at once than are held and to be held."""
        self._lane.limit.allot(None if held is None else min(held, target))
        self._lane.offered(self._lane.limit.value)


class PerMinute:
    """Requests to start, or tokens to spend, in a minute.

    While a share shrinks, what is left of it may still be spent, at the smaller one's pace: as the last minute is
    forgotten, slot after slot becomes free for others, and neither they nor this process stand still meanwhile.
    """

    counts_for_s = PERIOD_S

    def __init__(self, what: str, words: str, cap: int, rate: Cap, lane: Lane) -> None:
        self.what = what
        self.words = words
        self.cap = cap
        self._rate = rate
        self._lane = lane
        self._appetite = _Appetite()

    def used(self) -> int:
        """What was spent in the minute that ends now."""
        return self._rate.spent(_loop_time())

    def demand(self, *, has_work: bool) -> Demand:
        """The cap while requests wait for it; nothing without work."""
        used, waiting = self.used(), ceil(self._rate.waiting_units)
        wanted = self._appetite.wanted(self.cap, used, held_back=waiting > 0, has_work=has_work)
        return Demand(used, wanted if has_work else 0, max(1, waiting))

    def allot(self, held: int | None, target: int) -> None:
        """Spend no more in a minute than is held, at the pace of what is to be."""
        self._rate.allot(held, _loop_time(), pace=target)
        self._lane.offered(self._lane.limit.value)


def _loop_time() -> float:
    """The time as the lane's caps are told it."""
    return asyncio.get_running_loop().time()


def budgets_of(lane: Lane) -> Iterator[Budget]:
    """The caps that the lane has."""
    upstream, rates = lane.upstream, lane.rates
    if rates.requests is not None and upstream.requests_per_minute is not None:
        yield PerMinute(
            "requests-per-minute", "requests a minute", upstream.requests_per_minute, rates.requests, lane
        )
    if rates.tokens is not None and upstream.tokens_per_minute is not None:
        yield PerMinute("tokens-per-minute", "tokens a minute", upstream.tokens_per_minute, rates.tokens, lane)
    yield InFlight(lane)

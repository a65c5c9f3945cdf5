"""Requests and tokens a minute: what an upstream may be asked in any minute, whenever that minute begins.

Two rules hold at once. A log of what was spent in the last period keeps every sliding window below the cap,
whatever the bursts; a bucket that fills at the cap's pace spreads it, for servers that count by the second.
Bookkeeping: times are handed in, in monotonic seconds.
"""

import re
from collections import deque
from math import ceil
from typing import Final

import msgspec

from batchline.models.upstreams import Upstream
from batchline.upstream.answers import Usage

PERIOD_S: Final = 60.0
MARGIN: Final = 0.005
"""By how much the log's window is longer than the period: a request comes in a little later than it is sent."""

SLOTS: Final = 600
"""Entries of a log at most: what is spent within a slot is one, and counts from the slot's end."""

LEAST_WAIT_S: Final = 1e-6
"""What is less is rounding, by which a clock could fail to move."""

BURST_S: Final = 1.0
BYTES_A_TOKEN: Final = 4
UNSAID_TOKENS: Final = 256
"""Completion tokens that are reckoned with where a request sets no limit and nothing has been learnt yet."""

LEARNT_FROM: Final = 10
SHARE_OF_NEW: Final = 0.05

_LIMIT = re.compile(rb'"max_(?:completion_|output_)?tokens"\s*:\s*([0-9]{1,9})')


class Spent(msgspec.Struct, eq=False):
    """What was spent within a slot that ended at that time."""

    at: float
    units: float


class Cap:
    """At most so many units in any period, spent evenly."""

    def __init__(self, per_period: int, now: float, *, period_s: float = PERIOD_S) -> None:
        self._whole = self._most = per_period
        self._period_s = period_s
        self._window_s = period_s * (1 + MARGIN)
        self._slot_s = period_s / SLOTS
        self._set_pace(per_period)
        self._level = self._room
        self._level_at = now
        self._log: deque[Spent] = deque()
        self._spent = 0.0
        self._last_at = float("-inf")
        self.waiting_units = 0.0
        """What the request costs that waits until it may be sent; 0 while none does."""

    def _set_pace(self, per_period: int) -> None:
        self._per_s = per_period / self._period_s
        self._room = max(1.0, self._per_s * BURST_S * self._period_s / PERIOD_S)

    def allot(self, most: int | None, now: float, *, pace: int = 0) -> None:
        """Spend no more than so many in a period, 0 included, and that at a pace of its own; None is all again."""
        self._pace_s(0.0, now)
        self._most = self._whole if most is None else most
        self._set_pace(self._whole if most is None else max(1, pace))
        if most is not None and self._last_at == float("-inf"):
            self._last_at = now

    def spent(self, now: float) -> int:
        """What was spent in the period that ends now."""
        self._forget(now)
        return ceil(self._spent)

    def wait_s(self, units: float, now: float) -> float:
        """Seconds until so many units may be spent; more than the cap may be when nothing else is."""
        self._forget(now)
        if units > self._most:
            wait_s = self._alone_s(units, now)
        else:
            wait_s = max(self._pace_s(units, now), self._room_s(units, now))
        if wait_s <= LEAST_WAIT_S:
            return 0.0
        self.waiting_units = units
        return wait_s

    def _alone_s(self, units: float, now: float) -> float:
        """Until as much time has gone by without spending as makes up for more than is allotted."""
        if self._most < 1:
            return self._period_s
        last_at = self._log[-1].at if self._log else self._last_at
        periods = min(units, self._whole) / self._most
        return max(0.0, last_at + self._window_s * max(1.0, periods) - now)

    def _forget(self, now: float) -> None:
        while self._log and self._log[0].at + self._window_s <= now:
            entry = self._log.popleft()
            self._spent -= entry.units
            self._last_at = entry.at
        if not self._log:
            self._spent = 0.0  # what rounding has left

    def _pace_s(self, units: float, now: float) -> float:
        """Until the bucket holds the units, or is full."""
        self._level = min(self._room, self._level + (now - self._level_at) * self._per_s)
        self._level_at = now
        return max(0.0, (min(units, self._room) - self._level) / self._per_s)

    def _room_s(self, units: float, now: float) -> float:
        """Until enough of the log lies behind the window."""
        over = self._spent + units - self._most
        if over <= 0:
            return 0.0
        for entry in self._log:
            over -= entry.units
            if over <= 0:
                return max(0.0, entry.at + self._window_s - now)
        return 0.0

    def take(self, units: float, now: float) -> Spent:
        """Spend units; the entry that they are kept in, for `correct`."""
        self.waiting_units = 0.0
        self._level -= units
        self._spent += units
        if not self._log or now > self._log[-1].at:
            self._log.append(Spent(now + self._slot_s, 0.0))
        self._log[-1].units += units
        return self._log[-1]

    def correct(self, entry: Spent, units: float, now: float) -> None:
        """Add units to what was taken then, or give some back as a negative number."""
        self._level -= units
        entry.units += units
        if entry.at + self._window_s > now:
            self._spent += units


class Held(msgspec.Struct, eq=False):
    """The tokens that an attempt has taken by estimate."""

    entry: Spent
    units: float
    raw: float


class Rates:
    """An upstream's caps, and what its answers teach about the tokens that a request will cost."""

    def __init__(self, upstream: Upstream, now: float, *, period_s: float = PERIOD_S) -> None:
        self.name = upstream.name
        self.requests = _cap(upstream.requests_per_minute, now, period_s)
        self.tokens = _cap(upstream.tokens_per_minute, now, period_s)
        self._learnt = 0
        self._mean = self._factor = 1.0
        self.blocked_until = 0.0

    def __bool__(self) -> bool:
        return self.requests is not None or self.tokens is not None

    def wait_s(self, body: bytes, now: float) -> float:
        """Seconds until a request with that body may be sent."""
        requests = self.requests.wait_s(1, now) if self.requests else 0.0
        tokens = self.tokens.wait_s(self._estimate(body), now) if self.tokens else 0.0
        wait_s = max(requests, tokens)
        self.blocked_until = now + wait_s
        return wait_s

    def take(self, body: bytes, now: float) -> Held | None:
        """Spend a request, and its tokens by estimate; what is to be settled later."""
        if self.requests:
            self.requests.take(1, now)
        if not self.tokens:
            return None
        units = self._estimate(body)
        return Held(self.tokens.take(units, now), units, _raw_estimate(body))

    def _estimate(self, body: bytes) -> float:
        return max(1.0, _raw_estimate(body) * self._factor)

    def settle(self, held: Held | None, usage: Usage | None, now: float, *, refused: bool = False) -> None:
        """Put the tokens that an answer reports in the estimate's place.

        A request that was refused for its rate cost none; what another failure cost is not known, and the estimate
        stands.
        """
        if held is None or self.tokens is None or (usage is None and not refused):
            return
        used = 0.0 if usage is None else float(usage.total_tokens)
        self.tokens.correct(held.entry, used - held.units, now)
        if usage is not None:
            self._learn(used / held.raw)

    def _learn(self, factor: float) -> None:
        """Move the mean of used over reckoned towards a new one; the first few are weighed alike."""
        self._learnt += 1
        share = max(SHARE_OF_NEW, 1.0 / self._learnt)
        self._mean += share * (factor - self._mean)
        if self._learnt >= LEARNT_FROM:
            self._factor = self._mean

    def reason(self, now: float) -> str | None:
        """What to tell people while a cap holds requests back for more than a moment."""
        wait_s = self.blocked_until - now
        return (
            f"the rate cap of upstream {self.name} is used up; going on in {wait_s:.0f} s" if wait_s > 1 else None
        )


def _raw_estimate(body: bytes) -> float:
    """Tokens of a request before anything is learnt: a quarter of its bytes, and what it allows for the answer."""
    found = _LIMIT.search(body)
    return max(1.0, len(body) / BYTES_A_TOKEN) + (int(found[1]) if found else UNSAID_TOKENS)


def _cap(per_minute: int | None, now: float, period_s: float) -> Cap | None:
    return None if per_minute is None else Cap(per_minute, now, period_s=period_s)

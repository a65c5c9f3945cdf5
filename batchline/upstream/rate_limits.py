"""Limits of requests and tokens per minute, which hold for every sliding window of a minute.

Two rules apply at once: a log of the last period keeps every window below the cap, and a token bucket spreads the
load for servers that count by the second. Nothing here reads a clock: callers pass the time in monotonic seconds.
"""

import re
from collections import deque
from math import ceil
from typing import Final

import msgspec

from batchline.models.upstreams import Upstream
from batchline.models.usage import Usage

PERIOD_S: Final = 60.0
WINDOW_MARGIN: Final = 0.005
"""Part by which the window is longer than the period, since requests arrive a little later than they are sent."""

MAX_ENTRIES: Final = 600
"""Maximum entries in a log: all that is spent within a 600th of the period is one entry, dated at its end."""

MIN_WAIT_S: Final = 1e-6
"""Seconds below which a wait is a rounding error; a timer for it could fire at the same clock reading."""

BURST_S: Final = 1.0
BYTES_PER_TOKEN: Final = 4
DEFAULT_COMPLETION_TOKENS: Final = 256
"""Estimated completion tokens of a request that sets no limit."""

MIN_SAMPLES: Final = 10
MIN_SAMPLE_WEIGHT: Final = 0.05

_MAX_TOKENS_PATTERN = re.compile(rb'"max_(?:completion_|output_)?tokens"\s*:\s*([0-9]{1,9})')


class WindowEntry(msgspec.Struct, eq=False):
    """Units that were spent within one step of the log, which ends at `ends_at`."""

    ends_at: float
    units: float


class SlidingWindowLimit:
    """A limit of `per_period` units in any period, spent evenly."""

    def __init__(self, per_period: int, now: float, *, period_s: float = PERIOD_S) -> None:
        self._full_limit = self._limit = per_period
        self._period_s = period_s
        self._window_s = period_s * (1 + WINDOW_MARGIN)
        self._entry_s = period_s / MAX_ENTRIES
        self._set_refill_rate(per_period)
        self._bucket_level = self._bucket_size
        self._bucket_updated_at = now
        self._entries: deque[WindowEntry] = deque()
        self._window_units = 0.0
        self._last_entry_at = float("-inf")
        self.waiting_units = 0.0
        """Units of the request that waits for this limit; 0 if none waits."""

    def _set_refill_rate(self, per_period: int) -> None:
        self._refill_per_s = per_period / self._period_s
        self._bucket_size = max(1.0, self._refill_per_s * BURST_S * self._period_s / PERIOD_S)

    def set_cap(self, limit: int | None, now: float, *, pace: int = 0) -> None:
        """Limit a period to `limit` units, possibly 0, at the rate `pace` per period; None: the full limit."""
        self._bucket_wait_s(0.0, now)  # fill the bucket at the old rate up to now
        self._limit = self._full_limit if limit is None else limit
        self._set_refill_rate(self._full_limit if limit is None else max(1, pace))
        # With a share of the cap, an oversized request waits as if something had been spent just now: another
        # process may have done so.
        if limit is not None and self._last_entry_at == float("-inf"):
            self._last_entry_at = now

    def spent_units(self, now: float) -> int:
        """Return the units that were spent in the period that ends now, rounded up."""
        self._drop_expired(now)
        return ceil(self._window_units)

    def wait_s(self, units: float, now: float) -> float:
        """Return the seconds until the units may be spent; if above the limit, until they may pass alone."""
        self._drop_expired(now)
        if self._limit < 1:
            wait_s = self._period_s
        elif units > self._limit:  # alone, after as long as keeps the average below the limit
            last_entry_at = self._entries[-1].ends_at if self._entries else self._last_entry_at
            periods = max(1.0, min(units, self._full_limit) / self._limit)
            wait_s = max(0.0, last_entry_at + self._window_s * periods - now)
        else:
            wait_s = max(self._bucket_wait_s(units, now), self._window_wait_s(units, now))
        if wait_s <= MIN_WAIT_S:
            return 0.0
        self.waiting_units = units
        return wait_s

    def _drop_expired(self, now: float) -> None:
        while self._entries and self._entries[0].ends_at + self._window_s <= now:
            entry = self._entries.popleft()
            self._window_units -= entry.units
            self._last_entry_at = entry.ends_at
        if not self._entries:
            self._window_units = 0.0  # remove rounding errors

    def _bucket_wait_s(self, units: float, now: float) -> float:
        """Return the seconds until the bucket holds the units, or is full if they are more."""
        self._bucket_level = min(
            self._bucket_size, self._bucket_level + (now - self._bucket_updated_at) * self._refill_per_s
        )
        self._bucket_updated_at = now
        return max(0.0, (min(units, self._bucket_size) - self._bucket_level) / self._refill_per_s)

    def _window_wait_s(self, units: float, now: float) -> float:
        """Return the seconds until enough entries have left the window."""
        excess = self._window_units + units - self._limit
        if excess <= 0:
            return 0.0
        for entry in self._entries:
            excess -= entry.units
            if excess <= 0:
                return max(0.0, entry.ends_at + self._window_s - now)
        return 0.0

    def spend(self, units: float, now: float) -> WindowEntry:
        """Spend units, and return their entry for `correct`."""
        self.waiting_units = 0.0
        self._bucket_level -= units
        self._window_units += units
        if not self._entries or now > self._entries[-1].ends_at:
            self._entries.append(WindowEntry(now + self._entry_s, 0.0))
        self._entries[-1].units += units
        return self._entries[-1]

    def correct(self, entry: WindowEntry, units: float, now: float) -> None:
        """Add units to the entry; a negative number returns some."""
        self._bucket_level -= units
        entry.units += units
        if entry.ends_at + self._window_s > now:
            self._window_units += units


class Reservation(msgspec.Struct, eq=False):
    """The estimated tokens that an attempt has spent."""

    entry: WindowEntry
    units: float
    raw_estimate: float


class RateLimits:
    """An upstream's rate limits, with estimates of tokens that adapt to the usage in its replies."""

    def __init__(self, upstream: Upstream, now: float, *, period_s: float = PERIOD_S) -> None:
        self.upstream_name = upstream.name
        self.requests = _limit_or_none(upstream.requests_per_minute, now, period_s)
        self.tokens = _limit_or_none(upstream.tokens_per_minute, now, period_s)
        self._samples = 0
        self._mean_factor = self._factor = 1.0
        self.blocked_until = 0.0

    def __bool__(self) -> bool:
        return self.requests is not None or self.tokens is not None

    def wait_s(self, body: bytes, now: float) -> float:
        """Return the seconds until a request with that body may be sent."""
        requests_wait_s = self.requests.wait_s(1, now) if self.requests else 0.0
        tokens_wait_s = self.tokens.wait_s(self._estimate_tokens(body), now) if self.tokens else 0.0
        wait_s = max(requests_wait_s, tokens_wait_s)
        self.blocked_until = now + wait_s
        return wait_s

    def reserve(self, body: bytes, now: float) -> Reservation | None:
        """Spend a request and its estimated tokens, to be reconciled; return None without a token limit."""
        if self.requests:
            self.requests.spend(1, now)
        if not self.tokens:
            return None
        units = self._estimate_tokens(body)
        return Reservation(self.tokens.spend(units, now), units, _estimate_from_body(body))

    def _estimate_tokens(self, body: bytes) -> float:
        return max(1.0, _estimate_from_body(body) * self._factor)

    def reconcile(
        self, reservation: Reservation | None, usage: Usage | None, now: float, *, is_uncharged: bool = False
    ) -> None:
        """Replace the estimate by the tokens that the reply reports.

        An `is_uncharged` request cost none. Without a usage the cost is not known, and the estimate is kept.
        """
        if reservation is None or self.tokens is None or (usage is None and not is_uncharged):
            return
        used = 0.0 if usage is None else float(usage.total_tokens)
        self.tokens.correct(reservation.entry, used - reservation.units, now)
        if usage is not None:
            # The moving average of used over estimated tokens; the first samples have equal weights.
            self._samples += 1
            weight = max(MIN_SAMPLE_WEIGHT, 1.0 / self._samples)
            self._mean_factor += weight * (used / reservation.raw_estimate - self._mean_factor)
            if self._samples >= MIN_SAMPLES:
                self._factor = self._mean_factor

    def reason(self, now: float) -> str | None:
        """Return the reason to display while a limit blocks sending for more than a second, or None."""
        wait_s = self.blocked_until - now
        if wait_s <= 1:
            return None
        return f"the rate limit of upstream {self.upstream_name} is used up; continuing in {wait_s:.0f} s"


def _estimate_from_body(body: bytes) -> float:
    """Return a request's tokens by a fixed rule: a quarter of its bytes, plus its limit of completion tokens."""
    match = _MAX_TOKENS_PATTERN.search(body)
    return max(1.0, len(body) / BYTES_PER_TOKEN) + (int(match[1]) if match else DEFAULT_COMPLETION_TOKENS)


def _limit_or_none(per_minute: int | None, now: float, period_s: float) -> SlidingWindowLimit | None:
    return None if per_minute is None else SlidingWindowLimit(per_minute, now, period_s=period_s)

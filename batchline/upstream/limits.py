"""Limits that adapt to an upstream: requests in flight, pauses after push-back, and a circuit breaker.

Nothing here reads a clock: callers pass the time in monotonic seconds.
"""

from typing import Final

TOLERATED_SHARE: Final = 0.05
"""Share of push-back (429, 503, timeouts) that does not cut the limit: single ones do not show overload."""

MAX_CUT: Final = 0.3
CUT_INTERVAL_S: Final = 1.0
MIN_WINDOW_REPLIES: Final = 20
MIN_REPLIES: Final = 10
"""Fewer replies count as this many, so that one push-back among the first few is not half of them."""

DEMAND_FACTOR: Final = 1.25
"""Demand for a shared cap, relative to a limit that was cut; more than 1, so that the limit can rise."""

FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 60.0
FIRST_PROBE_INTERVAL_S: Final = 0.5
MAX_PROBE_INTERVAL_S: Final = 15.0
PROBE_TIMEOUT_S: Final = 60.0
"""Seconds after which the next probe is sent without a reply to the last one, which may hang."""

MAX_REACHABLE_PROBE_INTERVAL_S: Final = 2.0
"""Limit while the server is reachable: certain requests may fail every time and should use up their attempts."""

OUTAGE_STATUSES: Final = frozenset({502, 503, 504})
MAX_UNCOUNTED_ATTEMPTS: Final = 30
"""Attempts per request that are not counted during an outage, if the server may have seen them."""

CONNECT_FAILURES_TO_TRIP: Final = 5
FAILURES_TO_TRIP: Final = 10


class PushBackShare:
    """The share of push-back among the last replies, with exponential decay."""

    def __init__(self) -> None:
        self._replies = self._pushed_back = 0.0

    def record_push_back(self, replies: int, window: int) -> float:
        """Return the share after `replies` further replies, of which only the last one was push-back."""
        # All replies since the last push-back decay at once, so that successes cost nothing here.
        decay = (1 - 1 / window) ** replies
        self._replies = window - (window - self._replies) * decay
        self._pushed_back = self._pushed_back * decay + 1
        return self._pushed_back / max(self._replies, MIN_REPLIES)


class AdaptiveLimit:
    """Limit of requests in flight: cut by the share of push-back among the last replies, raised by successes.

    The window of replies is as long as the limit: about one reply to each request in flight.
    """

    def __init__(self, *, floor: int, ceiling: int) -> None:
        self._floor = floor
        self._ceiling = ceiling
        self._value = float(ceiling)
        self._cap = ceiling
        self._last_cut_at = float("-inf")
        self._cut_from = float(ceiling)
        self._push_back_share = PushBackShare()
        self.replies_since_push_back = 0
        """Replies since the last push-back, successes and failures; counted by the pool."""

        # A plain attribute: it is read for every call that is sent.
        self.value = ceiling

    @property
    def ceiling(self) -> int:
        """The configured maximum."""
        return self._ceiling

    @property
    def is_reduced(self) -> bool:
        """True if push-back has cut the limit below its ceiling."""
        return self._value < self._ceiling

    @property
    def demand(self) -> int:
        """Slots that could be used: the ceiling, or a little more than a limit that was cut."""
        return min(self._ceiling, int(self._value * DEMAND_FACTOR) + 1)

    def set_cap(self, cap: int | None) -> None:
        """Allow at most `cap` requests, which may be 0; None restores the ceiling."""
        self._cap = self._ceiling if cap is None else cap
        self._set_value(self._value)

    def on_success(self) -> None:
        """Raise the limit by one for as many successes as the limit allows requests."""
        if self._value < self._ceiling:
            self._set_value(self._value + 1.0 / self._value)

    def on_push_back(self, now: float) -> bool:
        """Cut the limit after push-back; return False if the share is tolerated and nothing changes.

        Requests that were sent together fail together, so cuts within `CUT_INTERVAL_S` count as the largest one.
        """
        share = self._push_back_share.record_push_back(
            self.replies_since_push_back, max(MIN_WINDOW_REPLIES, int(self._value))
        )
        self.replies_since_push_back = 0
        if share <= TOLERATED_SHARE:
            return False
        if now - self._last_cut_at >= CUT_INTERVAL_S:
            self._last_cut_at = now
            self._cut_from = min(self._value, float(max(1, self._cap)))
        self._set_value(min(self._value, self._cut_from * (1 - min(MAX_CUT, share - TOLERATED_SHARE))))
        return True

    def restart_low(self) -> None:
        """Restart with a low limit, after an outage."""
        self._set_value(self._ceiling / 8)

    def _set_value(self, value: float) -> None:
        self._value = max(float(self._floor), min(float(self._ceiling), value))
        self.value = min(int(self._value), self._cap)


class RateLimitPause:
    """A pause of all sending, after the upstream reported too many requests."""

    def __init__(self) -> None:
        self.until = 0.0
        self._next_pause_s = FIRST_PAUSE_S

    def extend(self, now: float, wait_s: float | None) -> None:
        """Pause for `wait_s` of Retry-After; without one, twice as long as the last time."""
        if wait_s is not None:
            self.until = max(self.until, now + min(wait_s, MAX_PAUSE_S))
        elif now >= self.until:  # replies to requests that were sent before the pause do not extend it
            self.until = now + self._next_pause_s
            self._next_pause_s = min(self._next_pause_s * 2, MAX_PAUSE_S)

    def reason(self, upstream_name: str, now: float) -> str | None:
        """Return the reason to display, or None if less than a second remains."""
        wait_s = self.until - now
        return f"upstream {upstream_name} limits the rate; going on in {wait_s:.0f} s" if wait_s > 1.0 else None

    def on_success(self) -> None:
        """Reset the length of the next pause."""
        self._next_pause_s = FIRST_PAUSE_S


class CircuitBreaker:
    """Circuit breaker: opens if an upstream is down, and then spaces the probes until one succeeds."""

    def __init__(self) -> None:
        self.cause: str | None = None
        self.is_reachable = False
        self.next_probe_at = 0.0
        self._consecutive_failures = 0
        self._consecutive_connect_failures = 0
        self._probe_interval_s = FIRST_PROBE_INTERVAL_S

    @property
    def is_open(self) -> bool:
        """True if only probes may be sent."""
        return self.cause is not None

    def reason(self, upstream_name: str, now: float) -> str | None:
        """Return a description of the outage to display, or None if there is none."""
        wait_s = max(0.0, self.next_probe_at - now)
        return (
            None
            if self.cause is None
            else f"upstream {upstream_name} is down ({self.cause}); next try in {wait_s:.0f} s"
        )

    def on_success(self) -> bool:
        """Close the breaker; return True if it was open."""
        self._consecutive_failures = self._consecutive_connect_failures = 0
        self._probe_interval_s = FIRST_PROBE_INTERVAL_S
        was_open, self.cause = self.is_open, None
        return was_open

    def on_failure(self, now: float, cause: str, *, sent: bool, is_first_attempt: bool, is_probe: bool) -> None:
        """Count a failure that may be due to an outage; `sent` is False if no connection was made.

        Failures of sent requests count for first attempts only: a few requests that always fail, and remain when
        the others are done, are no outage.
        """
        self.is_reachable = sent
        self._consecutive_failures += is_first_attempt or not sent
        self._consecutive_connect_failures += not sent
        if self.is_open:
            if is_probe:
                self._probe_interval_s = min(
                    self._probe_interval_s * 2, MAX_REACHABLE_PROBE_INTERVAL_S if sent else MAX_PROBE_INTERVAL_S
                )
                self.next_probe_at = now + self._probe_interval_s
            self.cause = cause
        elif (
            self._consecutive_failures >= FAILURES_TO_TRIP
            or self._consecutive_connect_failures >= CONNECT_FAILURES_TO_TRIP
        ):
            self.cause = cause
            self.next_probe_at = now + self._probe_interval_s

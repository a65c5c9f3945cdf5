"""How much an upstream is asked at once: a limit that adapts, and a pause when it is down.

Bookkeeping: times are handed in, in monotonic seconds.
"""

from typing import Final

TOLERATED_SHARE: Final = 0.05
"""A share of push-back that costs nothing: a stray one says nothing about how much a server can take."""

MAX_CUT: Final = 0.3
CUT_INTERVAL_S: Final = 1.0
MIN_WINDOW_REPLIES: Final = 20
MIN_REPLIES: Final = 10
"""Fewer answers count as this many, so that one push-back among the first few is not half of them."""

DEMAND_FACTOR: Final = 1.25
"""How much of a limit that was cut is wanted of a cap that others share: room to rise again."""

FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 60.0
FIRST_PROBE_INTERVAL_S: Final = 0.5
MAX_PROBE_INTERVAL_S: Final = 15.0
PROBE_TIMEOUT_S: Final = 60.0
"""A probe without an answer for this long does not hold up the next one: it may hang until its timeout."""

MAX_REACHABLE_PROBE_INTERVAL_S: Final = 2.0
"""While the server can be reached: the outage may be requests that it always fails, which want to be done with."""

OUTAGE_STATUSES: Final = frozenset({502, 503, 504})
MAX_UNCOUNTED_ATTEMPTS: Final = 30
"""Attempts of one request that an outage may cost it for nothing, where the server may have seen them."""

CONNECT_FAILURES_TO_TRIP: Final = 5
FAILURES_TO_TRIP: Final = 10


class PushBackShare:
    """The share of push-back among the last answers; older answers fade out."""

    def __init__(self) -> None:
        self._replies = self._pushed_back = 0.0

    def record_push_back(self, replies: int, window: int) -> float:
        """Return the share after so many further answers, of which the last one was push-back."""
        decay = (1 - 1 / window) ** replies
        self._replies = window - (window - self._replies) * decay
        self._pushed_back = self._pushed_back * decay + 1
        return self._pushed_back / max(self._replies, MIN_REPLIES)


class AdaptiveLimit:
    """Requests in flight at once: cut by the share of push-back among the last answers, raised by successes.

    The window is as long as the limit, about one round of answers to all that is in flight.
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
        """Answers since the last push-back; the caller counts them, good and bad."""

        self.value = ceiling

    @property
    def ceiling(self) -> int:
        """The most that it can be."""
        return self._ceiling

    @property
    def is_reduced(self) -> bool:
        """Whether push-back holds it below its ceiling."""
        return self._value < self._ceiling

    @property
    def demand(self) -> int:
        """What could be used: the ceiling, or a little more than a limit that was cut."""
        return min(self._ceiling, int(self._value * DEMAND_FACTOR) + 1)

    def set_cap(self, cap: int | None) -> None:
        """Allow no more than so many, 0 included, whatever the upstream takes; None allows the ceiling again."""
        self._cap = self._ceiling if cap is None else cap
        self._set_value(self._value)

    def on_success(self) -> None:
        """Raise the limit by one for every limit's worth of successes."""
        if self._value < self._ceiling:
            self._set_value(self._value + 1.0 / self._value)

    def on_push_back(self, now: float) -> bool:
        """Note that the last answer was push-back; return False if it is a stray one, which changes nothing.

        All cuts within a second count as one, of the largest share: requests sent together fail together.
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
        """Begin again low, after an outage."""
        self._set_value(self._ceiling / 8)

    def _set_value(self, value: float) -> None:
        self._value = max(float(self._floor), min(float(self._ceiling), value))
        self.value = min(int(self._value), self._cap)


class RateLimitPause:
    """Until when nothing new is sent because the upstream said that it is too much."""

    def __init__(self) -> None:
        self.until = 0.0
        self._next_pause_s = FIRST_PAUSE_S

    def extend(self, now: float, wait_s: float | None) -> None:
        """Hold as long as the answer asks, or longer each time where it asks nothing."""
        if wait_s is not None:
            self.until = max(self.until, now + min(wait_s, MAX_PAUSE_S))
        elif now >= self.until:
            self.until = now + self._next_pause_s
            self._next_pause_s = min(self._next_pause_s * 2, MAX_PAUSE_S)

    def reason(self, upstream_name: str, now: float) -> str | None:
        """What to tell people while it holds for more than a moment."""
        wait_s = self.until - now
        return f"upstream {upstream_name} limits the rate; going on in {wait_s:.0f} s" if wait_s > 1.0 else None

    def on_success(self) -> None:
        """Let the next hold be short again."""
        self._next_pause_s = FIRST_PAUSE_S


class CircuitBreaker:
    """Notices an upstream that is down altogether, and paces the probes that find it up again."""

    def __init__(self) -> None:
        self.cause: str | None = None
        self.is_reachable = False
        self.next_probe_at = 0.0
        self._consecutive_failures = 0
        self._consecutive_connect_failures = 0
        self._probe_interval_s = FIRST_PROBE_INTERVAL_S

    @property
    def is_open(self) -> bool:
        """Whether only probes are sent."""
        return self.cause is not None

    def reason(self, upstream_name: str, now: float) -> str | None:
        """What to tell people of the outage."""
        wait_s = max(0.0, self.next_probe_at - now)
        return (
            None
            if self.cause is None
            else f"upstream {upstream_name} is down ({self.cause}); next try in {wait_s:.0f} s"
        )

    def on_success(self) -> bool:
        """Note that the upstream answers; whether that ended an outage."""
        self._consecutive_failures = self._consecutive_connect_failures = 0
        self._probe_interval_s = FIRST_PROBE_INTERVAL_S
        was_open, self.cause = self.is_open, None
        return was_open

    def on_failure(self, now: float, cause: str, *, sent: bool, is_first_attempt: bool, is_probe: bool) -> None:
        """Note a failure that an outage would explain; `sent` is false where no connection came about.

        Where the request may have reached the server, it is the first tries (`fresh`) that tell: a few requests
        that fail again and again, left over when the others are done, are no outage.
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

"""How much an upstream is asked at once: a limit that adapts, and a pause when it is down.

Bookkeeping: times are handed in, in monotonic seconds.
"""

from typing import Final

TOLERATED: Final = 0.05
"""A share of push-back that costs nothing: a stray one says nothing about how much a server can take."""

MOST_CUT: Final = 0.3
CUT_EVERY_S: Final = 1.0
WINDOW_ANSWERS: Final = 20
LEAST_ANSWERS: Final = 10
"""Fewer answers count as this many, so that one push-back among the first few is not half of them."""

WANTED: Final = 1.25
"""How much of a limit that was cut is wanted of a cap that others share: room to rise again."""

HOLD_FIRST_S: Final = 0.25
HOLD_MOST_S: Final = 60.0
PROBE_FIRST_S: Final = 0.5
PROBE_MOST_S: Final = 15.0
PROBE_PATIENCE_S: Final = 60.0
"""A probe without an answer for this long does not hold up the next one: it may hang until its timeout."""

PROBE_REACHED_MOST_S: Final = 2.0
"""While the server can be reached: the outage may be requests that it always fails, which want to be done with."""

OUTAGE_STATUSES: Final = frozenset({502, 503, 504})
FREE_OUTAGE_ATTEMPTS: Final = 30
"""Attempts of one request that an outage may cost it for nothing, where the server may have seen them."""

REFUSED_TO_TRIP: Final = 5
FAILED_TO_TRIP: Final = 10


class PushBackShare:
    """The share of push-back among the last answers; older answers fade out."""

    def __init__(self) -> None:
        self._answers = self._pushed_back = 0.0

    def added(self, answers: int, window: int) -> float:
        """Return the share after so many further answers, of which the last one was push-back."""
        kept = (1 - 1 / window) ** answers
        self._answers = window - (window - self._answers) * kept
        self._pushed_back = self._pushed_back * kept + 1
        return self._pushed_back / max(self._answers, LEAST_ANSWERS)


class AdaptiveLimit:
    """Requests in flight at once: cut by the share of push-back among the last answers, raised by successes.

    The window is as long as the limit, about one round of answers to all that is in flight.
    """

    def __init__(self, *, floor: int, ceiling: int) -> None:
        self._floor = floor
        self._ceiling = ceiling
        self._value = float(ceiling)
        self._allotted = ceiling
        self._cut_at = float("-inf")
        self._cut_from = float(ceiling)
        self._share = PushBackShare()
        self.answers = 0
        """Answers since the last push-back; the caller counts them, good and bad."""

        self.value = ceiling

    @property
    def ceiling(self) -> int:
        """The most that it can be."""
        return self._ceiling

    @property
    def is_cut(self) -> bool:
        """Whether push-back holds it below its ceiling."""
        return self._value < self._ceiling

    @property
    def wanted(self) -> int:
        """What could be used: the ceiling, or a little more than a limit that was cut."""
        return min(self._ceiling, int(self._value * WANTED) + 1)

    def allot(self, most: int | None) -> None:
        """Allow no more than so many, 0 included, whatever the upstream takes; None allows the ceiling again."""
        self._allotted = self._ceiling if most is None else most
        self._set(self._value)

    def succeeded(self) -> None:
        """Raise the limit by one for every limit's worth of successes."""
        if self._value < self._ceiling:
            self._set(self._value + 1.0 / self._value)

    def pushed_back(self, now: float) -> bool:
        """Note that the last answer was push-back; return False if it is a stray one, which changes nothing.

        All cuts within a second count as one, of the largest share: requests sent together fail together.
        """
        share = self._share.added(self.answers, max(WINDOW_ANSWERS, int(self._value)))
        self.answers = 0
        if share <= TOLERATED:
            return False
        if now - self._cut_at >= CUT_EVERY_S:
            self._cut_at = now
            self._cut_from = min(self._value, float(max(1, self._allotted)))
        self._set(min(self._value, self._cut_from * (1 - min(MOST_CUT, share - TOLERATED))))
        return True

    def restart(self) -> None:
        """Begin again low, after an outage."""
        self._set(self._ceiling / 8)

    def _set(self, value: float) -> None:
        self._value = max(float(self._floor), min(float(self._ceiling), value))
        self.value = min(int(self._value), self._allotted)


class Hold:
    """Until when nothing new is sent because the upstream said that it is too much."""

    def __init__(self) -> None:
        self.until = 0.0
        self._next_s = HOLD_FIRST_S

    def rate_limited(self, now: float, wait_s: float | None) -> None:
        """Hold as long as the answer asks, or longer each time where it asks nothing."""
        if wait_s is not None:
            self.until = max(self.until, now + min(wait_s, HOLD_MOST_S))
        elif now >= self.until:
            self.until = now + self._next_s
            self._next_s = min(self._next_s * 2, HOLD_MOST_S)

    def reason(self, name: str, now: float) -> str | None:
        """What to tell people while it holds for more than a moment."""
        wait_s = self.until - now
        return f"upstream {name} limits the rate; going on in {wait_s:.0f} s" if wait_s > 1.0 else None

    def succeeded(self) -> None:
        """Let the next hold be short again."""
        self._next_s = HOLD_FIRST_S


class Breaker:
    """Notices an upstream that is down altogether, and paces the probes that find it up again."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.is_reached = False
        self.probe_at = 0.0
        self._in_a_row = 0
        self._refused_in_a_row = 0
        self._probe_s = PROBE_FIRST_S

    @property
    def is_open(self) -> bool:
        """Whether only probes are sent."""
        return self.why is not None

    def reason(self, name: str, now: float) -> str | None:
        """What to tell people of the outage."""
        wait_s = max(0.0, self.probe_at - now)
        return None if self.why is None else f"upstream {name} is down ({self.why}); next try in {wait_s:.0f} s"

    def succeeded(self) -> bool:
        """Note that the upstream answers; whether that ended an outage."""
        self._in_a_row = self._refused_in_a_row = 0
        self._probe_s = PROBE_FIRST_S
        was_open, self.why = self.is_open, None
        return was_open

    def failed(self, now: float, why: str, *, sent: bool, fresh: bool, is_probe: bool) -> None:
        """Note a failure that an outage would explain; `sent` is false where no connection came about.

        Where the request may have reached the server, it is the first tries (`fresh`) that tell: a few requests
        that fail again and again, left over when the others are done, are no outage.
        """
        self.is_reached = sent
        self._in_a_row += fresh or not sent
        self._refused_in_a_row += not sent
        if self.is_open:
            if is_probe:
                self._probe_s = min(self._probe_s * 2, PROBE_REACHED_MOST_S if sent else PROBE_MOST_S)
                self.probe_at = now + self._probe_s
            self.why = why
        elif self._in_a_row >= FAILED_TO_TRIP or self._refused_in_a_row >= REFUSED_TO_TRIP:
            self.why = why
            self.probe_at = now + self._probe_s

"""The limit of requests in flight, which adapts to the push-back of the upstream: 429, 503 and timeouts."""

from typing import Final

TOLERATED_SHARE: Final = 0.05
"""Share of push-back that does not cut the limit: single ones do not show overload."""

MAX_CUT: Final = 0.3
CUT_INTERVAL_S: Final = 1.0
MIN_WINDOW_REPLIES: Final = 20
MIN_REPLIES: Final = 10
"""Fewer replies count as this many, so that one push-back among the first few is not half of them."""

DEMAND_FACTOR: Final = 1.25
"""Demand for a shared cap, relative to a limit that was cut; more than 1, so that the limit can rise."""


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

"""Permission of a session to send: its lease must be valid, and storage must accept its results."""

import threading
import time
from math import inf
from typing import Final

MIN_SLEEP_S: Final = 1.0
"""Seconds that the wall clock must gain on the monotonic clock to show that the machine slept."""

REPORT_AFTER_S: Final = 2.0
"""Seconds of suspension before it is reported: a slow write is normal."""


class Permit:
    """Permission to send while the lease is valid and results can be saved; used from any thread.

    A holder is the order of a chunk queue whose results cannot be saved at the moment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lease_until = inf
        self._wall_clock_lead_s = 0.0
        self._suspended: dict[int, tuple[float, str]] = {}
        self._suspended_from = inf

    @property
    def until(self) -> float:
        """Monotonic time until which requests may be sent; infinite without a lease or a suspension."""
        if self._lease_until == inf:
            return self._suspended_from
        # The monotonic clock stops while the machine sleeps, and the lease may have expired meanwhile.
        if _wall_clock_lead_s() - self._wall_clock_lead_s > MIN_SLEEP_S:
            return -inf
        return min(self._lease_until, self._suspended_from)

    @property
    def is_suspended(self) -> bool:
        """True while results cannot be saved."""
        return self._suspended_from < inf and self._suspended_from <= time.monotonic()

    def renew(self, valid_for_s: float) -> None:
        """Allow sending for that long from now; before the first renewal there is no limit."""
        # In this order: between the two writes another thread still sees the old, earlier end.
        self._wall_clock_lead_s = _wall_clock_lead_s()
        self._lease_until = time.monotonic() + valid_for_s

    def suspend(self, holder: int, reason: str, *, after_s: float = 0.0) -> None:
        """Forbid sending from `after_s` seconds from now until the same holder resumes."""
        with self._lock:
            since = time.monotonic() + after_s
            if holder in self._suspended:
                since = min(since, self._suspended[holder][0])
            self._suspended[holder] = (since, reason)
            self._update_suspended_from()

    def resume(self, holder: int) -> bool:
        """End the holder's suspension, also one that was handed over; return True if there was one."""
        with self._lock:
            own_suspension, inherited_suspension = (
                self._suspended.pop(key, None) for key in (holder, _handed_over_key(holder))
            )
            self._update_suspended_from()
        return own_suspension is not None or inherited_suspension is not None

    def hand_over(self, holder: int) -> bool:
        """Keep the suspension of a holder that is closed, if there is one; return True if there is."""
        with self._lock:
            if holder in self._suspended:
                self._suspended[_handed_over_key(holder)] = self._suspended.pop(holder)
            return _handed_over_key(holder) in self._suspended

    def end_handed_over(self, holder: int) -> bool:
        """End the suspension that a closed holder left; return True if there was one."""
        with self._lock:
            was_handed_over = self._suspended.pop(_handed_over_key(holder), None) is not None
            self._update_suspended_from()
        return was_handed_over

    def reason(self) -> str | None:
        """Return why sending is suspended, or None if it is not, or only since a moment ago."""
        reported_since = time.monotonic() - REPORT_AFTER_S
        with self._lock:
            return next((reason for since, reason in self._suspended.values() if since <= reported_since), None)

    def _update_suspended_from(self) -> None:
        self._suspended_from = min((since for since, _ in self._suspended.values()), default=inf)


def _handed_over_key(holder: int) -> int:
    """Return the key under which the suspension of a closed holder is kept; holders are not negative."""
    return -1 - holder


def _wall_clock_lead_s() -> float:
    """Return the seconds by which the wall clock is ahead of the monotonic one; grows while the machine sleeps."""
    return time.time() - time.monotonic()

"""The circuit breaker: detects that an upstream is down, and spaces the probes until one succeeds."""

from typing import Final

FIRST_PROBE_INTERVAL_S: Final = 0.5
MAX_PROBE_INTERVAL_S: Final = 15.0
MAX_REACHABLE_PROBE_INTERVAL_S: Final = 2.0
"""Limit while the server is reachable: certain requests may fail every time and should use up their attempts."""

CONNECT_FAILURES_TO_TRIP: Final = 5
FAILURES_TO_TRIP: Final = 10


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
        if self.cause is None:
            return None
        wait_s = max(0.0, self.next_probe_at - now)
        return f"upstream {upstream_name} is down ({self.cause}); next try in {wait_s:.0f} s"

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

"""The pause of all sending after a 429, or after a 503 with a Retry-After."""

from typing import Final

FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 60.0


class RateLimitPause:
    """A pause of all sending, after the upstream reported too many requests."""

    def __init__(self) -> None:
        self.until = 0.0
        self._next_pause_s = FIRST_PAUSE_S

    def extend(self, now: float, wait_s: float | None) -> None:
        """Pause for the `wait_s` that the reply asks for; without one, twice as long as the last time."""
        if wait_s is not None:
            self.until = max(self.until, now + wait_s)
        elif now >= self.until:  # replies to requests that were sent before the pause do not extend it
            self.until = now + self._next_pause_s
            self._next_pause_s = min(self._next_pause_s * 2, MAX_PAUSE_S)

    def reason(self, upstream_name: str, now: float) -> str | None:
        """Return the reason to display, or None if less than a second remains."""
        wait_s = self.until - now
        return f"upstream {upstream_name} limits the rate; continuing in {wait_s:.0f} s" if wait_s > 1.0 else None

    def on_success(self) -> None:
        """Reset the length of the next pause."""
        self._next_pause_s = FIRST_PAUSE_S

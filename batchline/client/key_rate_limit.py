"""Limit the uses of an API key per minute, within this process."""

import threading
from collections import defaultdict, deque
from math import ceil
from typing import Final

MINUTE_S: Final = 60.0


class KeyRateLimiter:
    """Sliding one-minute window of uses per key; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._use_times: defaultdict[str, deque[float]] = defaultdict(deque)

    def acquire(self, key_id: str, per_minute: int | None, *, now: float) -> int:
        """Use the key once and return 0, or if its limit is reached the whole seconds until it may be used."""
        if per_minute is None:
            return 0
        with self._lock:
            use_times = self._use_times[key_id]
            while use_times and use_times[0] <= now - MINUTE_S:
                use_times.popleft()
            if len(use_times) < per_minute:
                use_times.append(now)
                return 0
            # Not `use_times[0]`: after the limit was lowered, more uses than `per_minute` are in the window.
            return max(1, ceil(use_times[-per_minute] + MINUTE_S - now))

"""One timer for all times at which something is due: the earliest of them."""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` at the earliest time that was asked for. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], object]) -> None:
        self._loop = loop
        self._call = ring
        self._handle: asyncio.Handle | None = None
        self._at = 0.0

    def wake_at(self, at: float) -> None:
        """Ring at that loop time, or earlier if it was set so."""
        if self._handle is not None:
            if self._at <= at:
                return
            self._handle.cancel()
        self._at = at
        self._handle = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._handle = None
        self._call()

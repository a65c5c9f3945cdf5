"""One timer for all times at which something is due: the earliest of them."""

import asyncio
from collections.abc import Callable


class WakeupTimer:
    """Calls `ring` at the earliest time that was asked for. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._due_at = 0.0

    def wake_at(self, due_at: float) -> None:
        """Ring at that loop time, or earlier if it was set so."""
        if self._handle is not None:
            if self._due_at <= due_at:
                return
            self._handle.cancel()
        self._due_at = due_at
        self._handle = self._loop.call_at(due_at, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        self._callback()

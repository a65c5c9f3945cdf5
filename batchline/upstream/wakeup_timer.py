"""A timer that is shared by many due times and fires at the earliest."""

import asyncio
from collections.abc import Callable


class WakeupTimer:
    """Calls `callback` at the earliest requested time. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._due_at = 0.0

    def wake_at(self, due_at: float) -> None:
        """Call back at that loop time, or earlier if an earlier time is set already."""
        if self._handle is not None:
            if self._due_at <= due_at:
                return
            self._handle.cancel()
        self._due_at = due_at
        self._handle = self._loop.call_at(due_at, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        self._callback()

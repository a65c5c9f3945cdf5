"""A bounded buffer between a connection's event loop and the thread that stores its data."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Final

MAX_BYTES: Final = 2 * 2**20


class BoundedBuffer:
    """Holds at most `MAX_BYTES` plus a block. Written on the loop that creates it, read by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._changed = threading.Condition()
        self._blocks: deque[memoryview] = deque()
        self._size_bytes = 0
        self._ended = self.is_abandoned = False
        self._error: BaseException | None = None

    async def put(self, block: bytes) -> None:
        """Append a block; waits while the buffer is full. Dropped if the reader has abandoned the buffer."""
        with self._changed:
            if self.is_abandoned:
                return
            self._blocks.append(memoryview(block))
            self._size_bytes += len(block)
            self._changed.notify()
            if self._size_bytes >= MAX_BYTES:
                self._has_room.clear()
        await self._has_room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end of the data; `read` then raises `error` if given."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes as soon as some are available; empty at the end."""
        with self._changed:
            while not self._blocks and not self._ended:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._blocks:
                return b""
            block = self._blocks.popleft()
            if len(block) > size:
                self._blocks.appendleft(block[size:])
            data = bytes(block[:size])
            was_full = self._size_bytes >= MAX_BYTES
            self._size_bytes -= len(data)
            # Asyncio events are not thread-safe: set it on the loop, and only when the state changes.
            if was_full and self._size_bytes < MAX_BYTES:
                self._loop.call_soon_threadsafe(self._has_room.set)
            return data

    def abandon(self) -> None:
        """Mark the buffer as no longer read."""
        with self._changed:
            self.is_abandoned = True
            self._blocks.clear()
            self._loop.call_soon_threadsafe(self._has_room.set)

"""Handles signals to stop: the first stops cleanly, a later one kills."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
REPEATED_WITHIN_S: Final = 2.0
"""Seconds within which a repeated signal counts as the first: `timeout` sends each one twice."""


def kill_process(number: int, handler: Any = signal.SIG_DFL) -> None:
    """End the process by the signal, without waiting for threads, unless `handler` does otherwise."""
    signal.signal(number, handler)
    os.kill(os.getpid(), number)


@contextmanager
def handle_stop_signals(
    on_first: Callable[[int], object],
    on_later: Callable[[int], object] = kill_process,
    *,
    numbers: Sequence[int] = STOP_SIGNALS,
) -> Iterator[None]:
    """Call `on_first` with the first of the signals that arrives within the block, `on_later` with later ones.

    Does nothing outside of the main thread, as Python allows signal handlers only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first_at: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        del frame
        now = time.monotonic()
        if first_at is None:
            first_at = now
            on_first(number)
        elif now - first_at >= REPEATED_WITHIN_S:
            on_later(number)

    previous_handlers = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)

"""Shares the caps of a process's upstreams with all other processes that call them.

A thread looks every few seconds at what all hold, decides what this process's share is, and takes or gives back
slots. A process that holds so many slots of a cap may send so many requests at once, or in a minute, by limits of
its own: nothing is asked for a single request, and since the slots of all never exceed the limit, what they send
does not either. What is still under way, or was spent within the last minute, is not given back before its time.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from typing import TypeVar

from batchline.upstream.budgets import budgets_of
from batchline.upstream.lane import Lane
from batchline.upstream.lane_share import LaneShare, Timing
from batchline.upstream.ledger import Ledger

log = logging.getLogger(__name__)

CLOSE_S = 3.0
LOOP_S = 10.0
"""Seconds to wait for the caller's loop, which may be busy; what it has not begun by then is not done."""

AGAIN_S = 5.0
MOST_AGAIN_S = 60.0
"""Seconds until a ledger that could not be opened is tried again, and at most."""
T = TypeVar("T")


class Sharing:
    """Shares the lanes' caps until it is closed; lanes send nothing before their first share."""

    def __init__(
        self,
        lanes: Iterable[Lane],
        loop: asyncio.AbstractEventLoop,
        open_ledger: Callable[[], AbstractContextManager[Ledger]],
        *,
        timing: Timing,
    ) -> None:
        self._lanes = tuple(lanes)
        self._loop = loop
        self._open_ledger = open_ledger
        self._timing = timing
        self._wake = threading.Event()
        self._closing = False
        self._again_s = AGAIN_S
        self._on_loop(self._hold_back)
        # In a context of its own, which has what was set for a time where sharing began.
        self._thread = threading.Thread(target=copy_context().run, args=(self._live,), name="budgets", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give back what is held; the caller's loop must still run. Never hangs: what is left lapses."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _hold_back(self) -> None:
        for lane in self._lanes:
            lane.on_need = self._wake.set
            for budget in budgets_of(lane):
                budget.allot(0, 0)

    def _let_go(self) -> None:
        for lane in self._lanes:
            lane.on_need = lane.waits_for = None
            for budget in budgets_of(lane):
                budget.allot(None, 0)

    def _live(self) -> None:
        """Share until closed; a ledger that cannot be opened is tried again and again."""
        while not self._closing:
            try:
                with self._open_ledger() as ledger:
                    self._share(ledger)
            except Exception:
                if not self._closing:
                    log.exception(
                        "quota sharing does not work; this process uses its own limits, and tries again in %.0f s",
                        self._again_s,
                    )
                    self._wait_to_try_again()

    def _wait_to_try_again(self) -> None:
        with suppress(TimeoutError, RuntimeError):
            self._on_loop(self._let_go)
        self._wake.clear()
        self._wake.wait(self._again_s)
        self._again_s = min(MOST_AGAIN_S, 2 * self._again_s)

    def _share(self, ledger: Ledger) -> None:
        shares = [LaneShare(lane, ledger, self._timing, self._on_loop, self._wake.set) for lane in self._lanes]
        for each in shares:
            each.prepare()
        while not self._closing:
            self._wake.clear()
            pause_s = min((each.look() for each in shares), default=None)
            self._wake.wait(pause_s)
        for each in shares:
            each.leave()

    def _on_loop(self, work: Callable[[], T]) -> T:
        """What the work gives, done on the caller's loop."""

        async def done() -> T:
            return work()

        future = asyncio.run_coroutine_threadsafe(done(), self._loop)
        try:
            return future.result(CLOSE_S if self._closing else LOOP_S)
        except TimeoutError:
            future.cancel()  # or it would be done later, beside what this thread does then
            raise

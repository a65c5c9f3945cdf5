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

from batchline.upstream.pool import UpstreamPool
from batchline.upstream.quota.demand import quota_targets
from batchline.upstream.quota.store import QuotaStore
from batchline.upstream.quota.upstream_quota import QuotaTiming, UpstreamQuota

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
LOOP_TIMEOUT_S = 10.0
"""Seconds to wait for the caller's loop, which may be busy; what it has not begun by then is not done."""

RETRY_S = 5.0
MAX_RETRY_S = 60.0
"""Seconds until a ledger that could not be opened is tried again, and at most."""
T = TypeVar("T")


class QuotaCoordinator:
    """Shares the lanes' caps until it is closed; lanes send nothing before their first share."""

    def __init__(
        self,
        pools: Iterable[UpstreamPool],
        loop: asyncio.AbstractEventLoop,
        open_store: Callable[[], AbstractContextManager[QuotaStore]],
        *,
        timing: QuotaTiming,
    ) -> None:
        self._pools = tuple(pools)
        self._loop = loop
        self._open_store = open_store
        self._timing = timing
        self._wakeup = threading.Event()
        self._is_closing = False
        self._retry_s = RETRY_S
        self._run_on_loop(self._block_sending)
        # In a context of its own, which has what was set for a time where sharing began.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run_loop,), name="budgets", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Give back what is held; the caller's loop must still run. Never hangs: what is left lapses."""
        self._is_closing = True
        self._wakeup.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _block_sending(self) -> None:
        for pool in self._pools:
            pool.on_demand = self._wakeup.set
            for target in quota_targets(pool):
                target.apply(0, 0)

    def _unblock_sending(self) -> None:
        for pool in self._pools:
            pool.on_demand = pool.wait_reason = None
            for target in quota_targets(pool):
                target.apply(None, 0)

    def _run_loop(self) -> None:
        """Share until closed; a ledger that cannot be opened is tried again and again."""
        while not self._is_closing:
            try:
                with self._open_store() as store:
                    self._sync_until_closed(store)
            except Exception:
                if not self._is_closing:
                    log.exception(
                        "quota sharing does not work; this process uses its own limits, and tries again in %.0f s",
                        self._retry_s,
                    )
                    self._wait_before_retry()

    def _wait_before_retry(self) -> None:
        with suppress(TimeoutError, RuntimeError):
            self._run_on_loop(self._unblock_sending)
        self._wakeup.clear()
        self._wakeup.wait(self._retry_s)
        self._retry_s = min(MAX_RETRY_S, 2 * self._retry_s)

    def _sync_until_closed(self, store: QuotaStore) -> None:
        quotas = [
            UpstreamQuota(pool, store, self._timing, self._run_on_loop, self._wakeup.set) for pool in self._pools
        ]
        for quota in quotas:
            quota.create_missing_limits()
        while not self._is_closing:
            self._wakeup.clear()
            poll_s = min((quota.sync() for quota in quotas), default=None)
            self._wakeup.wait(poll_s)
        for quota in quotas:
            quota.release()

    def _run_on_loop(self, function: Callable[[], T]) -> T:
        """What the work gives, done on the caller's loop."""

        async def call_function() -> T:
            return function()

        future = asyncio.run_coroutine_threadsafe(call_function(), self._loop)
        try:
            return future.result(CLOSE_TIMEOUT_S if self._is_closing else LOOP_TIMEOUT_S)
        except TimeoutError:
            future.cancel()  # or it would be done later, beside what this thread does then
            raise

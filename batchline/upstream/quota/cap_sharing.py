"""Shares the caps of a process's upstreams with all other processes that call them.

A thread reads every few seconds how many slots all processes hold, computes this process's share, and acquires or
releases slots. A process with n slots of a cap may send n requests at once, or per minute, under its own local
limits, so that no single request needs a call. All slots together never exceed the cap, hence neither do the
requests. Slots of requests in flight, or spent within the last minute, are released later.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
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
"""Seconds to wait for the dispatcher's loop, which may be busy; a call that has not begun by then is cancelled."""

RETRY_S = 5.0
MAX_RETRY_S = 60.0
"""Maximum seconds before opening the quota store is tried again; the delay doubles from `RETRY_S`."""
T = TypeVar("T")


class QuotaCoordinator:
    """Shares the pools' caps until it is closed; pools send nothing before they have their first share."""

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
        self._run_on_loop(lambda: self._limit_pools(0, self._wakeup.set))
        # In a copy of the context, since settings may be in effect only where sharing began.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run_loop,), name="quota coordinator", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Release the slots, or let them expire. Takes seconds at most; the loop must still run."""
        self._is_closing = True
        self._wakeup.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _limit_pools(self, slots: int | None, on_demand: Callable[[], object] | None) -> None:
        """Limit each cap of the pools to that many slots; None restores the whole cap."""
        for pool in self._pools:
            pool.on_demand, pool.wait_reason = on_demand, None
            for target in quota_targets(pool):
                target.apply(slots, 0)

    def _run_loop(self) -> None:
        """Share until closed; if the quota store fails, use the local limits and retry."""
        while not self._is_closing:
            try:
                with self._open_store() as store:
                    self._sync_until_closed(store)
            except Exception:
                if not self._is_closing:
                    log.exception(
                        "quota sharing does not work; this process uses its own limits and retries in %.0f s",
                        self._retry_s,
                    )
                    with suppress(TimeoutError, RuntimeError):
                        self._run_on_loop(lambda: self._limit_pools(None, None))
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
        """Return the function's result, computed on the loop.

        Raises `TimeoutError` if the loop is busy, and `RuntimeError` if it is closed.
        """
        future: Future[T] = Future()

        def call_function() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                future.set_exception(error)

        # A function, since a loop that stops before the call would leave a coroutine that is never awaited.
        self._loop.call_soon_threadsafe(call_function)
        try:
            return future.result(CLOSE_TIMEOUT_S if self._is_closing else LOOP_TIMEOUT_S)
        except TimeoutError:
            future.cancel()  # else it could run later, at the same time as this thread's next step
            raise

"""The dispatcher: an event loop in its own thread that owns all connections and limits of a process.

Chunks put blocks of calls and read blocks of results, since a switch of threads per request would be slow.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Self

from batchline.models.options import BatchOptions
from batchline.models.upstreams import Upstream
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.call_metrics import CallMetrics
from batchline.upstream.pool import UpstreamPool
from batchline.upstream.quota.cap_sharing import QuotaCoordinator
from batchline.upstream.quota.store import QuotaStore
from batchline.upstream.quota.upstream_quota import QuotaTiming
from batchline.upstream.transports.base import TransportFactory
from batchline.upstream.transports.select import open_transport

CLOSE_TIMEOUT_S = 5.0
NO_OPTIONS: Final = BatchOptions()


class Dispatcher:
    """Sends requests to upstreams for any number of sessions; starts its thread when constructed."""

    def __init__(
        self, upstreams: Sequence[Upstream], *, open_transport: TransportFactory = open_transport
    ) -> None:
        self._upstreams = tuple(upstreams)
        self._open_transport = open_transport
        self._loop = _new_event_loop()
        self._pools: dict[str, UpstreamPool] = {}
        self._quota_coordinator: QuotaCoordinator | None = None
        self._quota_lock = threading.Lock()
        self.metrics = CallMetrics()
        self._thread = threading.Thread(target=self._run_loop, name="dispatcher", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open_pools(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_session(
        self, batch_id: str, *, deadline: float | None, grace_s: float, options: BatchOptions = NO_OPTIONS
    ) -> BatchSession:
        """Open a session for a batch with these options; it expires at `deadline` (Unix seconds)."""
        session = BatchSession(
            batch_id,
            self._pools,
            self._loop,
            deadline=deadline,
            options=options,
            grace_s=grace_s,
            metrics=self.metrics,
            on_close=self._remove_session,
        )
        self._loop.call_soon_threadsafe(self._add_session, session)
        return session

    def share_quota(
        self,
        open_store: Callable[[], AbstractContextManager[QuotaStore]],
        *,
        timing: QuotaTiming = QuotaTiming(),  # noqa: B008 - frozen
    ) -> None:
        """Share the upstreams' caps with all processes that use the quota store; later calls have no effect."""
        with self._quota_lock:
            if self._quota_coordinator is None:
                self._quota_coordinator = QuotaCoordinator(
                    self._pools.values(), self._loop, open_store, timing=timing
                )

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return sum(len(pool.scheduler.in_flight_calls) for pool in self._pools.values())

    @property
    def is_open(self) -> bool:
        """True if sessions can be opened."""
        return self._thread.is_alive()

    def release_quota(self) -> None:
        """Release this process's share of the caps before it exits. Takes seconds at most."""
        if self._quota_coordinator is not None:
            self._quota_coordinator.close()

    def close(self) -> None:
        """End the thread and close the connections; requests in flight are dropped. Takes seconds at most."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._close_pools(), self._loop).result(CLOSE_TIMEOUT_S)
        self.release_quota()  # before the loop stops, since it measures on the loop which slots are used
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _open_pools(self) -> None:
        for upstream in self._upstreams:
            self._pools[upstream.name] = UpstreamPool(upstream, self._open_transport(upstream), self._loop)

    async def _close_pools(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S / 2):
                await asyncio.gather(*(pool.close() for pool in self._pools.values()), return_exceptions=True)

    def _add_session(self, session: BatchSession) -> None:
        for pool in self._pools.values():
            pool.scheduler.add_session(session)
        session.schedule_deadline_check()

    def _remove_session(self, session: BatchSession) -> None:
        for pool in self._pools.values():
            pool.scheduler.remove_session(session)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop if it is installed, else an asyncio loop."""
    try:
        import uvloop  # noqa: PLC0415 - not available on every system
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_dispatchers: list[tuple[int, tuple[Upstream, ...], Dispatcher]] = []
_dispatchers_lock = threading.Lock()


def dispatcher_for(upstreams: tuple[Upstream, ...]) -> Dispatcher:
    """Return this process's dispatcher for those upstreams, shared by all batches so that they share limits."""
    with _dispatchers_lock:
        for pid, dispatcher_upstreams, dispatcher in _dispatchers:
            # A forked process inherits the list, but not the dispatcher's thread.
            if pid == os.getpid() and dispatcher_upstreams == upstreams and dispatcher.is_open:
                return dispatcher
        dispatcher = Dispatcher(upstreams)
        _dispatchers.append((os.getpid(), upstreams, dispatcher))
        atexit.register(dispatcher.close)
        return dispatcher

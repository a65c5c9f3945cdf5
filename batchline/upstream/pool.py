"""The pool of one upstream: its workers send the calls that the scheduler chooses.

Everything here runs on the dispatcher's loop. A worker is a coroutine that sends one request after another, so
that a request costs no task of its own; retries wait in a heap and take up none of the limit.
"""

import asyncio
from collections.abc import Callable

from batchline.models.upstreams import Upstream
from batchline.upstream.retry_policy import RetryPolicy
from batchline.upstream.scheduler import CallScheduler
from batchline.upstream.sender import RequestSender
from batchline.upstream.transports.base import Transport


class UpstreamPool:
    """One upstream's connections, limits and workers."""

    def __init__(self, upstream: Upstream, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.scheduler = CallScheduler(upstream, loop, lambda: self.wake_workers(self.limit.value))
        self.limit = self.scheduler.limit
        self.wait_reason: str | None = None
        self.on_demand: Callable[[], object] | None = None
        """Called if there are calls to send and the limit is 0; None if the quota is not shared."""

        self._sender = RequestSender(transport, self.scheduler, RetryPolicy(self.scheduler, loop))
        self._loop = loop
        self._workers: set[asyncio.Task[None]] = set()
        self._idle_workers: list[asyncio.Future[None]] = []

    def pause_reason(self) -> str | None:
        """Return why nothing is sent at the moment, for display; None if nothing blocks sending."""
        scheduler, now, name = self.scheduler, self._loop.time(), self.upstream.name
        outage_reason, pause_reason = scheduler.breaker.reason(name, now), scheduler.pause.reason(name, now)
        return outage_reason or pause_reason or self.wait_reason or scheduler.rate_limits.reason(now)

    def wake_workers(self, count: int) -> None:
        """Wake or start workers for `count` calls, as far as the limit allows."""
        if self._sender.is_closing:  # the workers are cancelled, and `set_result` raises on a cancelled future
            return
        if self.limit.value < 1 and self.on_demand is not None:
            self.on_demand()
        for _ in range(min(count, self.limit.value - len(self.scheduler.in_flight_calls))):
            if self._idle_workers:
                self._idle_workers.pop().set_result(None)
            elif len(self._workers) < self.upstream.max_in_flight:
                worker = self._loop.create_task(self._worker_loop())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
            else:
                return

    async def _worker_loop(self) -> None:
        task = asyncio.current_task()
        scheduler, sender = self.scheduler, self._sender
        while not sender.is_closing:
            pending = scheduler.take_next()
            if pending is None:
                wakeup = self._loop.create_future()
                self._idle_workers.append(wakeup)
                await wakeup
                continue
            # The limit may have risen since the last wake-up, so each call that is sent wakes one more worker.
            if self._idle_workers and len(scheduler.in_flight_calls) < self.limit.value:
                self.wake_workers(1)
            pending.task = task
            try:
                await sender.send(pending)
            finally:
                scheduler.end_probe(pending)

    def drop_retries(self, owner: object) -> None:
        """Settle the calls of a session or chunk queue that wait for their next attempt."""
        self.scheduler.drop_retries(owner)

    def abort_in_flight(self, owner: object) -> None:
        """Cancel the requests in flight of a session or a chunk queue."""
        for pending in list(self.scheduler.in_flight_calls):
            if pending.belongs_to(owner) and pending.task is not None:
                pending.is_aborted = True
                pending.task.cancel()

    async def close(self) -> None:
        """Cancel the workers and close the connections."""
        self._sender.is_closing = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._sender.aclose()

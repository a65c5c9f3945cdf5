"""The process's one caller: an event loop in a thread of its own that owns all connections and limits.

Chunks hand it blocks of calls and take blocks of answers; nothing crosses between threads one request at a time.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Self

from batchline.models.upstreams import Upstream
from batchline.upstream.lane import Lane
from batchline.upstream.lane_share import Timing
from batchline.upstream.ledger import Ledger
from batchline.upstream.run import Run
from batchline.upstream.sharing import Sharing
from batchline.upstream.tally import Tally
from batchline.upstream.transport import TransportFactory
from batchline.upstream.transports import open_transport

CLOSE_S = 5.0


class Caller:
    """Calls upstreams for any number of runs; starts its thread when made."""

    def __init__(
        self, upstreams: Sequence[Upstream], *, open_transport: TransportFactory = open_transport
    ) -> None:
        self._upstreams = tuple(upstreams)
        self._open_transport = open_transport
        self._loop = _new_loop()
        self._lanes: dict[str, Lane] = {}
        self._sharing: Sharing | None = None
        self._sharing_lock = threading.Lock()
        self.tally = Tally()
        self._thread = threading.Thread(target=self._live, name="caller", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_run(
        self, batch_id: str, *, deadline: float | None, refusals_to_stop: int, grace_s: float, requests: int
    ) -> Run:
        """A run for a batch of so many requests; it expires by itself at `deadline` (Unix seconds)."""
        run = Run(
            batch_id,
            self._lanes,
            self._loop,
            deadline=deadline,
            refusals_to_stop=refusals_to_stop,
            grace_s=grace_s,
            requests=requests,
            tally=self.tally,
            on_close=self._leave,
        )
        self._loop.call_soon_threadsafe(self._join, run)
        return run

    def share(
        self,
        open_ledger: Callable[[], AbstractContextManager[Ledger]],
        *,
        timing: Timing = Timing(),  # noqa: B008 - frozen
    ) -> None:
        """Share the upstreams' caps with all processes that the ledger counts, until the end; safe to repeat."""
        with self._sharing_lock:
            if self._sharing is None:
                self._sharing = Sharing(self._lanes.values(), self._loop, open_ledger, timing=timing)

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return sum(len(lane.active) for lane in self._lanes.values())

    @property
    def is_open(self) -> bool:
        """Whether runs may be opened."""
        return self._thread.is_alive()

    def leave_shares(self) -> None:
        """Give back this process's share of the caps, which ends and is not to send any more. Never hangs."""
        if self._sharing is not None:
            self._sharing.close()

    def close(self) -> None:
        """End the thread and close the connections; what is under way is dropped. Never hangs."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(CLOSE_S)
        self.leave_shares()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _open(self) -> None:
        for upstream in self._upstreams:
            self._lanes[upstream.name] = Lane(upstream, self._open_transport(upstream), self._loop)

    async def _shut(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S / 2):
                await asyncio.gather(*(lane.close() for lane in self._lanes.values()), return_exceptions=True)

    def _join(self, run: Run) -> None:
        for lane in self._lanes.values():
            lane.join(run)
        run.watch_deadline()

    def _leave(self, run: Run) -> None:
        for lane in self._lanes.values():
            lane.leave(run)


def _new_loop() -> asyncio.AbstractEventLoop:
    """The fastest loop that is installed."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had on every system
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_callers: list[tuple[int, tuple[Upstream, ...], Caller]] = []
_callers_lock = threading.Lock()


def caller_for(upstreams: tuple[Upstream, ...]) -> Caller:
    """This process's caller of those upstreams, the same for the same ones, so that batches share limits."""
    with _callers_lock:
        for process, known, caller in _callers:
            if process == os.getpid() and known == upstreams and caller.is_open:
                return caller
        caller = Caller(upstreams)
        _callers.append((os.getpid(), upstreams, caller))
        atexit.register(caller.close)
        return caller

"""The queue of one chunk at the dispatcher: passes its calls to the pools and the results back to its thread."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

from batchline.models.error_codes import ErrorCode
from batchline.upstream.adaptive_limit import AdaptiveLimit
from batchline.upstream.call_results import Call, CallResult
from batchline.upstream.permit import Permit
from batchline.upstream.stop_reason import StopReason

WAKE_RESULTS = 256
"""Unread results at which the chunk's thread is woken."""

MAX_PENDING_CALLS = 512
MAX_PENDING_BYTES = 2**20
LARGE_BODY_BYTES = MAX_PENDING_BYTES // MAX_PENDING_CALLS
"""Size of a body above which the limit of bytes is reached before the limit of calls."""

MAX_UNREAD_BYTES = 16 * 2**20


class SessionPool(Protocol):
    """The part of `UpstreamPool` that sessions and queues use; `pool` imports this module, not the reverse."""

    limit: AdaptiveLimit

    def pause_reason(self) -> str | None:
        """Return why nothing is sent at the moment, for display; None if nothing blocks sending."""

    def wake_workers(self, count: int) -> None:
        """Wake or start workers for `count` calls, as far as the limit allows."""

    def drop_retries(self, owner: object) -> None:
        """Settle the calls of the owner that wait for their next attempt."""

    def abort_in_flight(self, owner: object) -> None:
        """Cancel the owner's requests in flight."""


class QueueSession(Protocol):
    """The part of `BatchSession` that its queues use; `batch_session` imports this module, not the reverse."""

    loop: asyncio.AbstractEventLoop
    permit: Permit
    pools: Mapping[str, SessionPool]
    stop_reason: StopReason | None

    @property
    def is_interrupted(self) -> bool:
        """True if the session was stopped so that another runner continues with the unsettled calls."""

    def record_result(self, result: CallResult) -> None:
        """Count a settled call."""


class ChunkQueue:
    """Passes one chunk's calls to the dispatcher and the results back; used by one thread."""

    def __init__(self, session: QueueSession, order: int, on_close: Callable[["ChunkQueue"], None]) -> None:
        self.order = order
        self.session = session
        self._on_close = on_close
        self.pending: dict[str, deque[Call]] = {name: deque() for name in session.pools}
        self._results: deque[CallResult] = deque()
        self._wakeup = threading.Event()
        self._has_ended = False
        self._is_dropped = False
        self._is_withdrawn = False
        self._is_blocked = False
        # No lock: each counter has one writer, the chunk's thread for the first three, the loop for the rest.
        self._put_count = self._put_bytes = self._read_bytes = 0
        self._sent_count = self._sent_bytes = self._settled_count = self._result_bytes = 0

    def __lt__(self, other: "ChunkQueue") -> bool:
        return self.order < other.order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, calls: Sequence[Call]) -> None:
        """Queue calls for sending; never blocks."""
        if not calls:
            return
        now = time.perf_counter()
        size = 0
        for call in calls:
            call.read_at = now
            size += len(call.body)
        # Counted before the loop can settle them: `settle` compares both counters.
        self._put_count += len(calls)
        self._put_bytes += size
        self.session.loop.call_soon_threadsafe(self._accept_calls, calls)

    def end_input(self) -> None:
        """Declare that no more calls will be put."""
        self._has_ended = True

    def withdraw(self) -> None:
        """Send no more calls; requests in flight can still be answered, then the queue is done."""
        self._has_ended = self._is_withdrawn = True
        self.session.loop.call_soon_threadsafe(self._withdraw_on_loop)

    def close(self) -> None:
        """Drop the calls that are pending or in flight, and their results."""
        if not self._is_dropped:
            self._is_dropped = True
            self.session.loop.call_soon_threadsafe(self._close_on_loop)

    @property
    def wants_calls(self) -> bool:
        """True if fewer calls and bytes are pending than the limits allow."""
        if self._has_ended or self.session.is_interrupted:
            return False
        return (
            self._put_count - self._sent_count < MAX_PENDING_CALLS
            and self._put_bytes - self._sent_bytes < MAX_PENDING_BYTES
        )

    @property
    def is_done(self) -> bool:
        """True if all calls are settled and all results are read, and no more calls will come."""
        is_over = (self._has_ended or self.session.is_interrupted) and self._settled_count >= self._put_count
        return is_over and not self._results  # in this order: `settle` appends a result before it counts it

    def wait_for_results(self, timeout_s: float) -> list[CallResult]:
        """Return the unread results.

        Waits until there are `WAKE_RESULTS`, more calls are wanted, all is done, or the timeout is over.
        """
        if len(self._results) < WAKE_RESULTS and not self.wants_calls and not self.is_done:
            self._wakeup.wait(timeout_s)
        # Cleared before the results are taken, so that no later wake-up is lost.
        self._wakeup.clear()
        results = [self._results.popleft() for _ in range(len(self._results))]
        self._read_bytes += sum(len(result.body) for result in results if result.body)
        if self._is_blocked:
            self.session.loop.call_soon_threadsafe(self._resume_sending)
        return results

    # The methods below run on the dispatcher's loop, except for `is_closed`.

    def _accept_calls(self, calls: Sequence[Call]) -> None:
        stop_reason = self.session.stop_reason
        if stop_reason is not None or self._is_dropped or self._is_withdrawn:
            for call in calls:
                self._sent_count += 1
                self._sent_bytes += len(call.body)
                self.settle_unsent(call)
            self.wake_reader()
            return
        for call in calls:
            self.pending[call.upstream].append(call)
        for upstream, pool in self.session.pools.items():
            if self.pending[upstream]:
                pool.wake_workers(len(self.pending[upstream]))

    def take_call(self, upstream: str) -> Call | None:
        """Take the next call to that upstream; None if there is none or too many results are not saved."""
        pending = self.pending[upstream]
        if not pending:
            return None
        if self.session.permit.is_suspended:
            return None
        # Backpressure: a reader that cannot keep up must not fill the memory with results.
        if self._result_bytes - self._read_bytes > MAX_UNREAD_BYTES:
            self._is_blocked = True
            return None
        call = pending.popleft()
        self._sent_count += 1
        size = len(call.body)
        self._sent_bytes += size
        # Wake the reader when the limit is just left, not for each call; large bodies leave it at other counts.
        unsent_count = self._put_count - self._sent_count
        if (unsent_count == MAX_PENDING_CALLS - 1 or not pending or size > LARGE_BODY_BYTES) and self.wants_calls:
            self._wakeup.set()
        return call

    def _resume_sending(self) -> None:
        self._is_blocked = False
        for pool in self.session.pools.values():
            pool.wake_workers(1)

    def settle(self, result: CallResult) -> None:
        """Pass a result to the reader.

        Results are dropped after the queue was closed. Once sending has stopped, retryable failures are dropped as
        well: the next runner sends these calls again.
        """
        if self._is_dropped or ((self._is_withdrawn or self.session.is_interrupted) and result.is_retryable):
            self._settled_count += 1
            return
        self.session.record_result(result)
        if result.body:
            self._result_bytes += len(result.body)
        self._results.append(result)
        self._settled_count += 1
        if len(self._results) == WAKE_RESULTS or (self._has_ended and self._settled_count >= self._put_count):
            self._wakeup.set()

    def settle_unsent(self, call: Call, attempts: int = 0, retries: tuple[ErrorCode, ...] = ()) -> None:
        """Settle a call that is not sent (again), with the code of the session's stop if it has one."""
        stop_reason = self.session.stop_reason
        if stop_reason is None or stop_reason.code is None or self._is_dropped:
            self._settled_count += 1
            return
        self.settle(
            CallResult(
                call=call, code=stop_reason.code, message=stop_reason.message, attempts=attempts, retries=retries
            )
        )

    def settle_pending(self) -> None:
        """Settle all calls that were never sent."""
        for pending in self.pending.values():
            while pending:
                call = pending.popleft()
                self._sent_count += 1
                self._sent_bytes += len(call.body)
                self.settle_unsent(call)

    def wake_reader(self) -> None:
        """Wake the chunk's thread."""
        self._wakeup.set()

    def _withdraw_on_loop(self) -> None:
        self.settle_pending()
        for pool in self.session.pools.values():
            pool.drop_retries(self)
        self.wake_reader()

    def _close_on_loop(self) -> None:
        self.settle_pending()
        for pool in self.session.pools.values():
            # A retried chunk sends these lines again; their replies would be paid for and then dropped.
            pool.drop_retries(self)
            pool.abort_in_flight(self)
        self._on_close(self)

    @property
    def is_closed(self) -> bool:
        """True if no more of its calls may be sent."""
        return self._is_dropped or self._is_withdrawn

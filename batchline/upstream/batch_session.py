"""One batch at the dispatcher: its chunk queues, its counters, and the reason for an early stop."""

import asyncio
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import msgspec

from batchline.models.error_codes import UNANSWERED_CODES, ErrorCode
from batchline.upstream.call_metrics import CallMetrics
from batchline.upstream.call_results import Call, CallResult
from batchline.upstream.limits import AdaptiveLimit
from batchline.upstream.permit import Permit
from batchline.upstream.session_progress import SessionProgress

WAKE_RESULTS = 256
"""Unread results at which the chunk's thread is woken."""

MAX_PENDING_CALLS = 512
MAX_PENDING_BYTES = 2**20
LARGE_BODY_BYTES = MAX_PENDING_BYTES // MAX_PENDING_CALLS
"""Size of a body above which the limit of bytes is reached before the limit of calls."""

MAX_UNREAD_BYTES = 16 * 2**20

DEADLINE_CHECK_S = 5.0  # a single long timer would fire late after the machine slept or its clock was set


class StopReason(msgspec.Struct, frozen=True):
    """The reason why a session ends early.

    Unsettled calls get `code`; if it is None, they are left to the next runner of the batch.
    """

    code: ErrorCode | None
    message: str


class SessionPool(Protocol):
    """The part of `UpstreamPool` that sessions use; `pool` imports this module, not the reverse."""

    limit: AdaptiveLimit

    def pause_reason(self) -> str | None:
        """Return why nothing is sent at the moment, for display; None if nothing blocks sending."""

    def wake_workers(self, count: int) -> None:
        """Wake or start workers for `count` calls, as far as the limit allows."""

    def drop_retries(self, owner: "BatchSession | ChunkQueue") -> None:
        """Settle the calls of the owner that wait for their next attempt."""

    def abort_in_flight(self, owner: "BatchSession | ChunkQueue") -> None:
        """Cancel the owner's requests in flight."""


class BatchSession:
    """One batch at the dispatcher. Made by `Dispatcher.open_session`; used from any thread."""

    def __init__(
        self,
        batch_id: str,
        pools: Mapping[str, SessionPool],
        loop: asyncio.AbstractEventLoop,
        *,
        deadline: float | None,
        refusals_to_stop: int,
        grace_s: float,
        requests: int,
        metrics: CallMetrics,
        on_close: Callable[["BatchSession"], None],
    ) -> None:
        self.batch_id = batch_id
        self.metrics = metrics
        self.pools = pools
        self.loop = loop
        self.deadline = deadline
        self.grace_s = grace_s
        self.stop_reason: StopReason | None = None
        self.permit = Permit()
        self.queues: list[ChunkQueue] = []
        self.completed = self.failed = self.in_flight = self.attempts = self.retried = 0
        self.prompt_tokens = self.completion_tokens = self.total_tokens = 0
        self._refusals_to_stop = min(refusals_to_stop, requests) if requests else refusals_to_stop
        self.consecutive_auth_failures = 0
        self.has_remote_success = False
        """True if another process that sends for the batch has completed a request."""
        self._on_close = on_close
        self._lock = threading.Lock()
        self._deadline_timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_queue(self, order: int) -> "ChunkQueue":
        """Open a queue of calls; of a session's queues the one of lowest order is served first."""
        queue = ChunkQueue(self, order)
        self.loop.call_soon_threadsafe(insort, self.queues, queue)
        return queue

    @property
    def is_interrupted(self) -> bool:
        """True if the session was stopped so that another runner continues with the unsettled calls."""
        return self.stop_reason is not None and self.stop_reason.code is None

    def renew(self, valid_for_s: float) -> None:
        """Allow sending for that long from now; a session that is never renewed may always send."""
        self.permit.renew(valid_for_s)

    @property
    def valid_until(self) -> float:
        """Monotonic time until which requests may be sent."""
        return self.permit.until

    def resume(self, queue_order: int) -> None:
        """End the suspension by that queue, if there is one."""
        if self.permit.resume(queue_order) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._wake_pools)

    def resume_later(self, queue_order: int, after_s: float) -> None:
        """End the queue's suspension after that time, or sooner if a new queue of that order resumes."""
        if self.permit.hand_over(queue_order) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.call_later, after_s, self._end_handed_over, queue_order)

    def stop(self, stop: StopReason) -> None:
        """Stop sending; only the first stop counts. Requests in flight are aborted after the grace period."""
        with self._lock:
            if self.stop_reason is not None:
                return
            self.stop_reason = stop
        self.loop.call_soon_threadsafe(self._stop_on_loop)

    def close(self) -> None:
        """Close the session; calls in flight are dropped."""
        if self.loop.is_closed():
            return
        self.stop(StopReason(code=None, message="the run is over"))
        self.loop.call_soon_threadsafe(self._close_on_loop)

    def snapshot(self) -> SessionProgress:
        """Return the session's current progress."""
        pools = list(self.pools.values())
        return SessionProgress(
            completed=self.completed,
            failed=self.failed,
            in_flight=self.in_flight,
            attempts=self.attempts,
            retried=self.retried,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.total_tokens,
            limit=sum(pool.limit.value for pool in pools),
            ceiling=sum(pool.limit.ceiling for pool in pools),
            paused=self.permit.reason()
            or next((pause_reason for pool in pools if (pause_reason := pool.pause_reason())), None),
        )

    # The methods below run on the dispatcher's loop.

    def schedule_deadline_check(self) -> None:
        """Start the timer that stops the session at its deadline."""
        if self.deadline is not None:
            remaining_s = max(0.0, self.deadline - time.time())
            self._deadline_timer = self.loop.call_later(min(remaining_s, DEADLINE_CHECK_S), self._check_deadline)

    def _check_deadline(self) -> None:
        if self.deadline is not None and time.time() < self.deadline:
            self.schedule_deadline_check()
            return
        self.stop(
            StopReason(ErrorCode.BATCH_EXPIRED, "the completion window closed before this request was settled")
        )

    def _end_handed_over(self, queue_order: int) -> None:
        if self.permit.end_handed_over(queue_order):
            self._wake_pools()

    def _wake_pools(self) -> None:
        for pool in self.pools.values():
            pool.wake_workers(pool.limit.value)

    def _stop_on_loop(self) -> None:
        for queue in self.queues:
            queue.settle_pending()
        for pool in self.pools.values():
            pool.drop_retries(self)
        # Requests in flight are paid for already: the grace period lets their replies still arrive.
        self.loop.call_later(self.grace_s, self.abort_in_flight)
        for queue in self.queues:
            queue.wake_reader()

    def abort_in_flight(self) -> None:
        """Cancel all requests in flight."""
        for pool in self.pools.values():
            pool.abort_in_flight(self)

    def _close_on_loop(self) -> None:
        self.abort_in_flight()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._on_close(self)

    def has_pending(self, upstream: str) -> bool:
        """Return True if calls to that upstream wait that were never sent."""
        return any(queue.pending[upstream] for queue in self.queues)

    def record_result(self, result: CallResult) -> None:
        """Count a settled call, in the session and in the process's metrics."""
        self.metrics.record_result(result)
        if result.code is not None:
            self.failed += result.code not in UNANSWERED_CODES
            return
        self.completed += 1
        if result.usage is not None:
            self.prompt_tokens += result.usage.prompt_tokens
            self.completion_tokens += result.usage.completion_tokens
            self.total_tokens += result.usage.total_tokens

    def on_auth_failure(self, upstream: str, status_code: int) -> None:
        """Count a 401 or 403; stop the session if the upstream refuses every request."""
        self.consecutive_auth_failures += 1
        has_no_success = self.completed == 0 and not self.has_remote_success
        if has_no_success and self.consecutive_auth_failures >= self._refusals_to_stop:
            self.stop(
                StopReason(
                    ErrorCode.BATCH_FAILED,
                    f"upstream {upstream} refuses every request: {status_code} "
                    f"{self.consecutive_auth_failures} times in a "
                    "row; check its API key",
                )
            )

    def on_auth_success(self) -> None:
        """Reset the count of 401 and 403: a reply shows that the key is accepted."""
        self.consecutive_auth_failures = 0


class ChunkQueue:
    """Passes one chunk's calls to the dispatcher and the results back; used by one thread."""

    def __init__(self, session: BatchSession, order: int) -> None:
        self.order = order
        self.session = session
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
        if self in self.session.queues:
            self.session.queues.remove(self)

    @property
    def is_closed(self) -> bool:
        """True if no more of its calls may be sent."""
        return self._is_dropped or self._is_withdrawn

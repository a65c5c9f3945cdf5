"""One batch at the dispatcher: its chunk queues, its counters, its deadline, and the reason for an early stop."""

import asyncio
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping
from typing import Self

from batchline.models.batches import PauseCode
from batchline.models.error_codes import UNANSWERED_CODES, ErrorCode
from batchline.models.options import BatchOptions
from batchline.upstream.call_metrics import CallMetrics
from batchline.upstream.call_results import CallResult
from batchline.upstream.chunk_queue import ChunkQueue, SessionPool
from batchline.upstream.failure_streaks import FailureStreaks
from batchline.upstream.permit import Permit
from batchline.upstream.session_progress import SessionProgress
from batchline.upstream.stop_reason import StopReason

DEADLINE_CHECK_S = 5.0  # a single long timer would fire late after the machine slept or its clock was set


class BatchSession:
    """One batch at the dispatcher. Made by `Dispatcher.open_session`; used from any thread."""

    def __init__(
        self,
        batch_id: str,
        pools: Mapping[str, SessionPool],
        loop: asyncio.AbstractEventLoop,
        *,
        deadline: float | None,
        options: BatchOptions,
        grace_s: float,
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
        self._has_grace_started = False
        self.permit = Permit()
        self.queues: list[ChunkQueue] = []
        self.completed = self.failed = self.in_flight = self.attempts = self.retried = 0
        self.prompt_tokens = self.completion_tokens = self.total_tokens = 0
        self.options = options
        self.streaks = FailureStreaks(options.max_identical_failures)
        self._on_close = on_close
        self._lock = threading.Lock()
        self._deadline_timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_queue(self, order: int) -> ChunkQueue:
        """Open a queue of calls; of a session's queues the one of lowest order is served first."""
        queue = ChunkQueue(self, order, self.queues.remove)
        self.loop.call_soon_threadsafe(insort, self.queues, queue)
        return queue

    @property
    def is_interrupted(self) -> bool:
        """True if the session was stopped so that another runner continues with the unsettled calls."""
        return self.stop_reason is not None and self.stop_reason.code is None

    def renew(self, valid_for_s: float) -> None:
        """Allow sending for that long from now; a session that is never renewed may always send."""
        self.permit.renew(valid_for_s)

    def resume(self, queue_order: int) -> None:
        """End the suspension by that queue, if there is one."""
        if self.permit.resume(queue_order) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._wake_pools)

    def resume_later(self, queue_order: int, after_s: float) -> None:
        """End the queue's suspension after that time, or sooner if a new queue of that order resumes."""
        if self.permit.hand_over(queue_order) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.call_later, after_s, self._end_handed_over, queue_order)

    def stop(self, stop: StopReason) -> None:
        """Stop sending; only the first stop counts.

        Requests in flight are aborted after the grace period. A pause waits for them until another stop follows.
        """
        with self._lock:
            is_first = self.stop_reason is None
            if is_first:
                self.stop_reason = stop
            # Requests in flight are paid for already, so their replies may still arrive for a while.
            starts_grace = not stop.is_pause and not self._has_grace_started
            self._has_grace_started |= starts_grace
        if is_first:
            self.loop.call_soon_threadsafe(self._stop_on_loop)
        if starts_grace:
            self.loop.call_soon_threadsafe(self.loop.call_later, self.grace_s, self.abort_in_flight)

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
            self._deadline_timer = self.loop.call_later(
                min(remaining_s, DEADLINE_CHECK_S), self._expire_at_deadline
            )

    def _expire_at_deadline(self) -> None:
        if self.deadline is not None and time.time() < self.deadline:
            self.schedule_deadline_check()
            return
        if self.stop_reason is not None:  # the window of a batch that was paused stands still
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

    def stop_at_limit(self, limit: PauseCode, message: str) -> None:
        """Pause the batch at a limit, or stop it like a cancel if its options say so."""
        pauses = self.options.on_limit == "pause"
        self.stop(StopReason(None if pauses else ErrorCode.BATCH_CANCELLED, message, limit=limit))

"""The scheduler of a pool: chooses the next call among retries and the sessions' new calls.

Everything here runs on the dispatcher's loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from batchline.models.upstreams import Upstream
from batchline.upstream.adaptive_limit import AdaptiveLimit
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.circuit_breaker import CircuitBreaker
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.rate_limit_pause import RateLimitPause
from batchline.upstream.rate_limits import RateLimits
from batchline.upstream.wakeup_timer import WakeupTimer

PROBE_TIMEOUT_S: Final = 60.0
"""Seconds after which the next probe is sent without a reply to the last one, which may hang."""


class CallScheduler:
    """The calls of one upstream, in flight or waiting, and the limits that decide when the next one is sent."""

    def __init__(
        self, upstream: Upstream, loop: asyncio.AbstractEventLoop, wake_workers: Callable[[], object]
    ) -> None:
        self.upstream = upstream
        self.limit = AdaptiveLimit(floor=upstream.min_in_flight, ceiling=upstream.max_in_flight)
        self.pause = RateLimitPause()
        self.breaker = CircuitBreaker()
        self.rate_limits = RateLimits(upstream, loop.time())
        self.wake_workers = wake_workers
        self.in_flight_calls: set[PendingCall] = set()
        self.probe: PendingCall | None = None
        """The call in flight that tests if an upstream that was down is back."""

        self.is_constrained = self._has_rate_limits = bool(self.rate_limits)
        """True if the next call must be checked against pauses, outages, retry times and rate limits."""

        self._loop = loop
        self._timer = WakeupTimer(loop, wake_workers)
        self._sessions: deque[BatchSession] = deque()
        self._retries: list[tuple[float, int, PendingCall]] = []
        """A heap of due times and calls; the numbers in between put those of one time in order."""

        self._retry_numbers = count()
        self._rate_limited_call: PendingCall | None = None
        self._is_retry_turn = True
        self._probe_until = 0.0
        self._in_flight_bytes = 0

    def add_session(self, session: BatchSession) -> None:
        """Take the session's calls from now on."""
        self._sessions.append(session)

    def remove_session(self, session: BatchSession) -> None:
        """Take no more calls from the session."""
        if session in self._sessions:
            self._sessions.remove(session)

    def has_pending(self) -> bool:
        """Return True if calls wait for their first or next attempt."""
        queues = (queue for session in self._sessions for queue in session.queues)
        return (
            bool(self._retries)
            or self._rate_limited_call is not None
            or any(queue.pending[self.upstream.name] for queue in queues)
        )

    def take_next(self) -> PendingCall | None:
        """Take the next call and count it as in flight; return None if none waits or none may be sent."""
        if len(self.in_flight_calls) >= self.limit.value:
            return None
        pending = self._take_next_constrained() if self.is_constrained else self._take_new_call()
        if pending is None:
            return None
        self.in_flight_calls.add(pending)
        self._in_flight_bytes += len(pending.call.body)
        pending.session.in_flight += 1
        return pending

    def remove_in_flight(self, pending: PendingCall) -> None:
        """Count the call as no longer in flight."""
        pending.task = None
        self.in_flight_calls.discard(pending)
        self._in_flight_bytes -= len(pending.call.body)
        pending.session.in_flight -= 1

    def _take_next_constrained(self) -> PendingCall | None:
        """Take the next call that a pause, an outage, retry times and rate limits allow, or return None."""
        now = self._loop.time()
        if self.pause.until > now:
            self._timer.wake_at(self.pause.until)
            return None
        if self.breaker.is_open:
            if self.probe is not None and self._probe_until > now:
                return None
            if self.breaker.next_probe_at > now:
                self._timer.wake_at(self.breaker.next_probe_at)
                return None
        pending, self._rate_limited_call = self._rate_limited_call or self._select_call(now), None
        if pending is None:
            return None
        if self._has_rate_limits:
            if (wait_s := self.rate_limits.wait_s(pending.call.body, now)) > 0:
                # Kept at the front: smaller calls that overtook it would use up the tokens it waits for.
                self._rate_limited_call = pending
                self._timer.wake_at(now + wait_s)
                return None
            pending.reservation = self.rate_limits.reserve(pending.call.body, now)
        if self.breaker.is_open:
            self.probe, self._probe_until = pending, now + PROBE_TIMEOUT_S
            self._timer.wake_at(self._probe_until)
        # Back to the fast path, which skips these checks for each call, once none of them applies.
        self.is_constrained = self._has_rate_limits or self.breaker.is_open or bool(self._retries)
        return pending

    def _select_call(self, now: float) -> PendingCall | None:
        """Take a retry or a new call: retries first, or alternately if several sessions share the pool."""
        if self.breaker.is_open and self.breaker.is_reachable:
            # A reachable server may fail certain requests every time, so a new call is the better probe.
            return self._take_new_call() or self._take_due_retry(now)
        self._is_retry_turn = not self._is_retry_turn or len(self._sessions) < 2
        if self._is_retry_turn:
            return self._take_due_retry(now) or self._take_new_call()
        return self._take_new_call() or self._take_due_retry(now)

    def _take_due_retry(self, now: float) -> PendingCall | None:
        """Take the first retry, or return None if it is not due or exceeds the byte limit."""
        if not self._retries:
            return None
        due_at, _, pending = self._retries[0]
        if due_at > now:
            self._timer.wake_at(due_at)
            return None
        if self._exceeds_byte_limit(pending):
            return None
        return heappop(self._retries)[2]

    def _take_new_call(self) -> PendingCall | None:
        """Take a call that was never sent: sessions take turns, within a session the lowest chunk is first."""
        sessions, upstream_name = self._sessions, self.upstream.name
        for _ in range(len(sessions)):
            session = sessions[0]
            if len(sessions) > 1:
                sessions.rotate(-1)
            for queue in session.queues:
                if (call := queue.take_call(upstream_name)) is not None:
                    pending = PendingCall(call, queue, session)
                    if not self._exceeds_byte_limit(pending):
                        return pending
                    # Without a timer: it fits once a request in flight has ended.
                    self.is_constrained = True
                    heappush(self._retries, (self._loop.time(), next(self._retry_numbers), pending))
                    return None
        return None

    def _exceeds_byte_limit(self, pending: PendingCall) -> bool:
        """Return True if the body exceeds the limit of bytes in flight; a request that is alone never does."""
        max_bytes = self.upstream.max_request_bytes_in_flight
        return self._in_flight_bytes + len(pending.call.body) > max_bytes and bool(self.in_flight_calls)

    def requeue(self, pending: PendingCall, due_at: float) -> None:
        """Queue the call for its next attempt at that loop time."""
        self.is_constrained = True
        heappush(self._retries, (due_at, next(self._retry_numbers), pending))
        self._timer.wake_at(due_at)

    def end_probe(self, pending: PendingCall) -> None:
        """Allow the next probe if this attempt was one, whether it was answered, failed or was never sent."""
        if pending is self.probe:
            self.probe = None
            if self.breaker.is_open:
                self._timer.wake_at(max(self.breaker.next_probe_at, self._loop.time()))

    def drop_retries(self, owner: object) -> None:
        """Settle the calls of a session or chunk queue that wait for their next attempt."""
        dropped = [pending for _, _, pending in self._retries if pending.belongs_to(owner)]
        if dropped:
            self._retries = [entry for entry in self._retries if not entry[2].belongs_to(owner)]
            heapify(self._retries)
        if self._rate_limited_call is not None and self._rate_limited_call.belongs_to(owner):
            dropped.append(self._rate_limited_call)
            self._rate_limited_call = None
        for pending in dropped:
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)

"""The pool of one upstream: its workers send calls and decide on the result of each attempt.

Everything here runs on the dispatcher's loop. A worker is a coroutine that sends one request after another, so
that a request costs no task of its own; retries wait in a heap and take up none of the limit.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from random import Random

from batchline.models.backoff import backoff_s, retry_after_s
from batchline.models.error_codes import AUTH_FAILURE_STATUSES, ErrorCode, is_retryable
from batchline.models.upstreams import Upstream
from batchline.upstream import limits
from batchline.upstream.batch_session import BatchSession, ChunkQueue
from batchline.upstream.call_results import MAX_INLINE_PARSE_BYTES, ParsedReply, parse_reply, redact
from batchline.upstream.limits import (
    MAX_UNCOUNTED_ATTEMPTS,
    OUTAGE_STATUSES,
    AdaptiveLimit,
    CircuitBreaker,
    RateLimitPause,
)
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.rate_limits import RateLimits
from batchline.upstream.retry_queue import RetryQueue, belongs_to
from batchline.upstream.transports.base import (
    DeadlinePassed,
    HttpReply,
    Transport,
    TransportFailure,
    secrets_to_redact,
)
from batchline.upstream.wakeup_timer import WakeupTimer

log = logging.getLogger(__name__)


class UpstreamPool:
    """One upstream's connections, limits and workers."""

    def __init__(self, upstream: Upstream, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.limit = AdaptiveLimit(floor=upstream.min_in_flight, ceiling=upstream.max_in_flight)
        self._transport = transport
        self._loop = loop
        self._pause = RateLimitPause()
        self._breaker = CircuitBreaker()
        self._probe: PendingCall | None = None
        self._probe_until = 0.0
        self.rate_limits = RateLimits(upstream, loop.time())
        self._rate_limited_call: PendingCall | None = None
        self._is_retry_turn = True
        self._sessions: deque[BatchSession] = deque()
        self._retry_queue = RetryQueue()
        self._secrets = secrets_to_redact(upstream)
        self._random = Random()  # noqa: S311 - jitter, not a secret
        self._workers: set[asyncio.Task[None]] = set()
        self._idle_workers: list[asyncio.Future[None]] = []
        self.in_flight_calls: set[PendingCall] = set()
        self._in_flight_bytes = 0
        self._is_constrained = self._has_rate_limits = bool(self.rate_limits)
        self._has_failed_recently = False
        self._timer = WakeupTimer(loop, lambda: self.wake_workers(self.limit.value))
        self._is_closing = False
        self.wait_reason: str | None = None
        self.on_demand: Callable[[], object] | None = None
        """Called if there are calls to send and the limit is 0; None if the quota is not shared."""

    def add_session(self, session: BatchSession) -> None:
        """Send the session's calls from now on."""
        self._sessions.append(session)

    def remove_session(self, session: BatchSession) -> None:
        """Take no more calls from the session."""
        if session in self._sessions:
            self._sessions.remove(session)

    def pause_reason(self) -> str | None:
        """Return why nothing is sent at the moment, for display; None if nothing blocks sending."""
        now, upstream_name = self._loop.time(), self.upstream.name
        outage_reason, rate_limit_reason = (
            self._breaker.reason(upstream_name, now),
            self._pause.reason(upstream_name, now),
        )
        return outage_reason or rate_limit_reason or self.wait_reason or self.rate_limits.reason(now)

    def has_pending(self) -> bool:
        """Return True if calls wait for their first or next attempt."""
        has_waiting_calls = bool(self._retry_queue) or self._rate_limited_call is not None
        return has_waiting_calls or any(session.has_pending(self.upstream.name) for session in self._sessions)

    async def close(self) -> None:
        """Cancel the workers and close the connections."""
        self._is_closing = True
        # Cancelling the workers cancels these futures, and `set_result` raises on a cancelled one.
        self._idle_workers.clear()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._transport.aclose()

    def wake_workers(self, count: int) -> None:
        """Wake or start workers for `count` calls, as far as the limit allows."""
        if self.limit.value < 1 and self.on_demand is not None:
            self.on_demand()
        for _ in range(min(count, self.limit.value - len(self.in_flight_calls))):
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
        while not self._is_closing:
            pending = self._take_next()
            if pending is None:
                wakeup = self._loop.create_future()
                self._idle_workers.append(wakeup)
                await wakeup
                continue
            # The limit may have risen since the last wake-up, so each call that is sent wakes one more worker.
            if self._idle_workers and len(self.in_flight_calls) < self.limit.value:
                self.wake_workers(1)
            pending.task = task
            try:
                await self._send_call(pending)
            finally:
                self._end_probe(pending)

    def _take_next(self) -> PendingCall | None:
        """Take the next call and count it as in flight; return None if none waits or none may be sent."""
        if len(self.in_flight_calls) >= self.limit.value:
            return None
        pending = self._take_next_constrained() if self._is_constrained else self._take_new_call()
        if pending is None:
            return None
        self.in_flight_calls.add(pending)
        self._in_flight_bytes += len(pending.call.body)
        pending.session.in_flight += 1
        return pending

    def _take_next_constrained(self) -> PendingCall | None:
        """Take the next call that a pause, an outage, retry times and rate limits allow, or return None."""
        now = self._loop.time()
        if not self._can_send(now):
            return None
        pending, self._rate_limited_call = self._rate_limited_call or self._select_call(now), None
        if pending is None or not self._fits_rate_limits(pending, now):
            return None
        if self._breaker.is_open:
            self._probe, self._probe_until = pending, now + limits.PROBE_TIMEOUT_S
            self._timer.wake_at(self._probe_until)
        # Back to the fast path, which skips these checks for each call, once none of them applies.
        self._is_constrained = self._has_rate_limits or self._breaker.is_open or bool(self._retry_queue)
        return pending

    def _select_call(self, now: float) -> PendingCall | None:
        """Take a retry or a new call: retries first, or alternately if several sessions share the pool."""
        if self._breaker.is_open and self._breaker.is_reachable:
            # A reachable server may fail certain requests every time, so a new call is the better probe.
            return self._take_new_call() or self._take_due_retry(now)
        self._is_retry_turn = not self._is_retry_turn or len(self._sessions) < 2
        if self._is_retry_turn:
            return self._take_due_retry(now) or self._take_new_call()
        return self._take_new_call() or self._take_due_retry(now)

    def _can_send(self, now: float) -> bool:
        if self._pause.until > now:
            self._timer.wake_at(self._pause.until)
            return False
        if self._breaker.is_open:
            if self._probe is not None and self._probe_until > now:
                return False
            if self._breaker.next_probe_at > now:
                self._timer.wake_at(self._breaker.next_probe_at)
                return False
        return True

    def _take_due_retry(self, now: float) -> PendingCall | None:
        """Take the first retry, or return None if it is not due or exceeds the byte limit."""
        if not self._retry_queue:
            return None
        due_at, pending = self._retry_queue.peek()
        if due_at > now:
            self._timer.wake_at(due_at)
            return None
        if self._exceeds_byte_limit(pending):
            return None
        return self._retry_queue.pop()

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
                    self._requeue(pending, self._loop.time())
                    return None
        return None

    def _exceeds_byte_limit(self, pending: PendingCall) -> bool:
        """Return True if the body exceeds the limit of bytes in flight; a request that is alone never does."""
        max_bytes = self.upstream.max_request_bytes_in_flight
        return self._in_flight_bytes + len(pending.call.body) > max_bytes and bool(self.in_flight_calls)

    def _fits_rate_limits(self, pending: PendingCall, now: float) -> bool:
        """Return True if the rate limits allow the call now; else keep it as the first to send."""
        if not self._has_rate_limits:
            return True
        wait_s = self.rate_limits.wait_s(pending.call.body, now)
        if wait_s > 0:
            # Kept at the front: smaller calls that overtook it would use up the tokens it waits for.
            self._rate_limited_call = pending
            self._timer.wake_at(now + wait_s)
            return False
        pending.reservation = self.rate_limits.reserve(pending.call.body, now)
        return True

    def _requeue(self, pending: PendingCall, due_at: float) -> None:
        self._is_constrained = True
        self._retry_queue.put(pending, due_at)

    async def _send_call(self, pending: PendingCall) -> None:
        session = pending.session
        if (
            session.stop_reason is not None
            or pending.queue.is_closed
            or time.monotonic() > (until := session.valid_until)
        ):
            self._remove_in_flight(pending)
            self._drop_unsent(pending)
            return
        pending.attempts += 1
        session.attempts += 1
        start = time.perf_counter()
        if pending.attempts == 1:
            pending.first_sent_at = start
        pending.started_at = time.time()
        try:
            reply = await self._transport.send(pending.call.path, pending.call.body, valid_until=until)
            duration_s = time.perf_counter() - start
            # Parsing a long reply on the loop would delay all other requests.
            is_long = len(reply.body) > MAX_INLINE_PARSE_BYTES
            parsed_reply = await asyncio.to_thread(parse_reply, reply) if is_long else parse_reply(reply)
        except DeadlinePassed:
            self._remove_in_flight(pending)
            pending.attempts -= 1
            session.attempts -= 1
            self._drop_unsent(pending)
        except TransportFailure as failure:
            self._remove_in_flight(pending)
            self._on_failure(pending, failure, time.perf_counter() - start)
        except asyncio.CancelledError:
            task = pending.task  # read first: the next line clears it
            self._remove_in_flight(pending)
            # `abort_in_flight` cancels the request, not the worker: uncancel it, so that it continues. Any other
            # cancellation is meant for the worker.
            if not pending.is_aborted or self._is_closing or task is None:
                raise
            task.uncancel()
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)
        except Exception as error:
            self._remove_in_flight(pending)
            log.exception("line %d could not be sent", pending.call.line)
            pending.queue.settle(pending.to_error_result(error))
        else:
            self._remove_in_flight(pending)
            self._on_reply(pending, reply, parsed_reply, duration_s)

    def _remove_in_flight(self, pending: PendingCall) -> None:
        pending.task = None
        self.in_flight_calls.discard(pending)
        self._in_flight_bytes -= len(pending.call.body)
        pending.session.in_flight -= 1

    def _drop_unsent(self, pending: PendingCall) -> None:
        """Settle a call that may not be sent, or requeue it if only the permit has run out."""
        self.rate_limits.reconcile(pending.reservation, None, self._loop.time(), is_uncharged=True)
        if pending.session.stop_reason is not None or pending.queue.is_closed:
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)
        else:
            self._requeue(pending, self._loop.time() + 0.25)

    def _on_reply(
        self, pending: PendingCall, reply: HttpReply, parsed_reply: ParsedReply, duration_s: float
    ) -> None:
        self.limit.replies_since_push_back += 1
        if pending.reservation is not None:
            # Only a 429 is known to cost no tokens; after other failures the estimate stays spent.
            is_rate_limited = reply.status_code == 429
            self.rate_limits.reconcile(
                pending.reservation, parsed_reply.usage, self._loop.time(), is_uncharged=is_rate_limited
            )
        if parsed_reply.code is None:
            self._on_success(pending.session)
            pending.queue.settle(pending.to_result(parsed_reply, reply, duration_s))
            return
        self._is_constrained = self._has_failed_recently = True
        code, parsed_reply = parsed_reply.code, redact(self._secrets, reply, parsed_reply)
        self._apply_push_back(reply, code)
        if parsed_reply.usage is not None:
            pending.wasted_tokens += parsed_reply.usage.total_tokens
        if reply.status_code in AUTH_FAILURE_STATUSES:
            pending.session.on_auth_failure(self.upstream.name, reply.status_code)
        elif code is ErrorCode.INVALID_REQUEST:
            pending.session.on_auth_success()
        wait_s = retry_after_s(retry_after_ms=reply.retry_after_ms, retry_after=reply.retry_after, now=time.time())
        is_outage = reply.status_code in OUTAGE_STATUSES
        if is_outage:
            self._record_outage_failure(pending, f"it answers {reply.status_code}", sent=True)
        else:
            self._end_outage()
        if not is_retryable(code, reply.status_code) or not self._schedule_retry(
            pending, code, wait_s=wait_s, free=is_outage and self._breaker.is_open
        ):
            pending.queue.settle(pending.to_result(parsed_reply, reply, duration_s))

    def _on_success(self, session: BatchSession) -> None:
        """Reset the failure counts, and raise the limit if push-back has reduced it."""
        if session.consecutive_auth_failures:
            session.on_auth_success()
        if self.limit.is_reduced:
            self.limit.on_success()
        if self._has_failed_recently:
            self._has_failed_recently = False
            self._pause.on_success()
            self._end_outage()

    def _apply_push_back(self, reply: HttpReply, code: ErrorCode) -> None:
        """Reduce the limit, and pause if asked to, after a reply that says that the upstream is overloaded."""
        if reply.status_code not in {429, 503} and code is not ErrorCode.TIMEOUT:
            return
        now = self._loop.time()
        is_stray = not self.limit.on_push_back(now)
        wait_s = retry_after_s(retry_after_ms=reply.retry_after_ms, retry_after=reply.retry_after, now=time.time())
        # The Retry-After of a stray reply applies to its own request only: the others are being answered.
        if not is_stray and (reply.status_code == 429 or wait_s is not None):
            self._pause.extend(now, wait_s)

    def _on_failure(self, pending: PendingCall, failure: TransportFailure, duration_s: float) -> None:
        """Handle an attempt that got no complete reply: count it, then retry or settle the call."""
        self._is_constrained = self._has_failed_recently = True
        now = self._loop.time()
        if failure.code is ErrorCode.TIMEOUT:
            self.limit.replies_since_push_back += 1
            self.limit.on_push_back(now)
        is_outage = failure.code is not ErrorCode.INVALID_RESPONSE and not failure.response_started
        if is_outage:
            self._record_outage_failure(pending, failure.message, sent=failure.sent)
        is_uncounted = is_outage and (self._breaker.is_open or not failure.sent)
        if not self._schedule_retry(pending, failure.code, wait_s=None, free=is_uncounted, sent=failure.sent):
            pending.queue.settle(pending.to_failed_result(failure, duration_s))

    def _schedule_retry(
        self, pending: PendingCall, code: ErrorCode, *, wait_s: float | None, free: bool, sent: bool = True
    ) -> bool:
        """Queue the call for its next attempt; return False if none is left or none fits before the deadline.

        A `free` attempt does not count; from `MAX_UNCOUNTED_ATTEMPTS` on this holds only if it was never sent.
        """
        session = pending.session
        if session.stop_reason is not None or pending.queue.is_closed:
            return False
        if free and (not sent or pending.uncounted_attempts < MAX_UNCOUNTED_ATTEMPTS):
            pending.uncounted_attempts += 1
        elif pending.attempts - pending.uncounted_attempts >= self.upstream.max_attempts:
            return False
        if wait_s is None:
            wait_s = backoff_s(
                max(1, pending.attempts - pending.uncounted_attempts),
                base_s=self.upstream.backoff_base_s,
                cap_s=self.upstream.backoff_cap_s,
                random=self._random,
            )
        if session.deadline is not None and time.time() + wait_s >= session.deadline:
            return False
        pending.retries = (*pending.retries, code)
        session.retried += 1
        due_at = self._loop.time() + wait_s
        self._requeue(pending, due_at)
        self._timer.wake_at(due_at)
        return True

    def _end_outage(self) -> None:
        if self._breaker.on_success():
            self._probe = None
            self.limit.restart_low()
            self.wake_workers(self.limit.value)

    def _record_outage_failure(self, pending: PendingCall, cause: str, *, sent: bool) -> None:
        """Count a failure that may be due to an outage."""
        is_probe = pending is self._probe
        self._breaker.on_failure(
            self._loop.time(), cause, sent=sent, is_first_attempt=pending.attempts == 1, is_probe=is_probe
        )

    def _end_probe(self, pending: PendingCall) -> None:
        """Allow the next probe if this attempt was one, whether it was answered, failed or was never sent."""
        if pending is not self._probe:
            return
        self._probe = None
        if self._breaker.is_open and not self._is_closing:
            self._timer.wake_at(max(self._breaker.next_probe_at, self._loop.time()))

    def drop_retries(self, owner: BatchSession | ChunkQueue) -> None:
        """Settle the calls of a session or chunk queue that wait for their next attempt."""
        dropped = self._retry_queue.remove(owner)
        if self._rate_limited_call is not None and belongs_to(self._rate_limited_call, owner):
            dropped.append(self._rate_limited_call)
            self._rate_limited_call = None
        for pending in dropped:
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)

    def abort_in_flight(self, owner: BatchSession | ChunkQueue) -> None:
        """Cancel the requests in flight of a session or a chunk queue."""
        for pending in list(self.in_flight_calls):
            if belongs_to(pending, owner) and pending.task is not None:
                pending.is_aborted = True
                pending.task.cancel()

"""One upstream at the caller: workers that send what comes next, and what becomes of each attempt.

Everything here runs on the caller's loop. A worker is a coroutine that sends one request after another, so that a
request costs no task of its own; retries wait in a heap and hold no place.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from random import Random

from batchline.models.backoff import backoff_s, retry_after_s
from batchline.models.failures import REFUSED_STATUSES, ErrorCode, is_retried
from batchline.models.upstreams import Upstream
from batchline.upstream import limits
from batchline.upstream.alarm import Alarm
from batchline.upstream.answers import LONG_BYTES, Reading, read_reply, reread_without
from batchline.upstream.attempt import Attempt
from batchline.upstream.limits import FREE_OUTAGE_ATTEMPTS, OUTAGE_STATUSES, AdaptiveLimit, Breaker, Hold
from batchline.upstream.rates import Rates
from batchline.upstream.retry_queue import RetryQueue, is_of
from batchline.upstream.run import Feed, Run
from batchline.upstream.transport import Reply, TooLate, Transport, TransportFailure, secrets_of

log = logging.getLogger(__name__)


class Lane:
    """One upstream's connections, limits and workers."""

    def __init__(self, upstream: Upstream, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.limit = AdaptiveLimit(floor=upstream.min_in_flight, ceiling=upstream.max_in_flight)
        self._transport = transport
        self._loop = loop
        self._hold = Hold()
        self._breaker = Breaker()
        self._probe: Attempt | None = None
        self._probe_until = 0.0
        self.rates = Rates(upstream, loop.time())
        self._waiting: Attempt | None = None
        self._retry_turn = True
        self._runs: deque[Run] = deque()
        self._retries = RetryQueue()
        self._secrets = secrets_of(upstream)
        self._random = Random()  # noqa: S311 - jitter, not a secret
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self.active: set[Attempt] = set()
        self._bytes = 0
        self._careful = self._has_rates = bool(self.rates)
        self._troubled = False
        self._alarm = Alarm(loop, lambda: self.offered(self.limit.value))
        self._closing = False
        self.waits_for: str | None = None
        self.on_need: Callable[[], object] | None = None
        """What to call when there is something to send and nothing is allotted; None where nobody allots."""

    def join(self, run: Run) -> None:
        """Take in a run's calls from now on."""
        self._runs.append(run)

    def leave(self, run: Run) -> None:
        """Forget a run."""
        if run in self._runs:
            self._runs.remove(run)

    def paused(self) -> str | None:
        """Why nothing is sent at the moment, for a person; none while all is well."""
        now, name = self._loop.time(), self.upstream.name
        outage, hold = self._breaker.reason(name, now), self._hold.reason(name, now)
        return outage or hold or self.waits_for or self.rates.reason(now)

    def has_pending(self) -> bool:
        """Whether anything waits to be sent, for the first time or again."""
        waits = bool(self._retries) or self._waiting is not None
        return waits or any(run.has_pending(self.upstream.name) for run in self._runs)

    async def close(self) -> None:
        """End the workers and close the connections."""
        self._closing = True
        self._idle.clear()  # each would be cancelled, and one that is cannot be woken
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._transport.aclose()

    def offered(self, calls: int) -> None:
        """Wake or start workers for so many calls that may be sent."""
        if self.limit.value < 1 and self.on_need is not None:
            self.on_need()
        for _ in range(min(calls, self.limit.value - len(self.active))):
            if self._idle:
                self._idle.pop().set_result(None)
            elif len(self._workers) < self.upstream.max_in_flight:
                worker = self._loop.create_task(self._work())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
            else:
                return

    async def _work(self) -> None:
        task = asyncio.current_task()
        while not self._closing:
            attempt = self._next()
            if attempt is None:
                place = self._loop.create_future()
                self._idle.append(place)
                await place
                continue
            if self._idle and len(self.active) < self.limit.value:
                self.offered(1)
            attempt.task = task
            try:
                await self._send(attempt)
            finally:
                self._end_probe(attempt)

    def _next(self) -> Attempt | None:
        """What goes out next, entered as under way; none while nothing may or can."""
        if len(self.active) >= self.limit.value:
            return None
        attempt = self._weighed() if self._careful else self._fresh()
        if attempt is None:
            return None
        self.active.add(attempt)
        self._bytes += len(attempt.call.body)
        attempt.run.in_flight += 1
        return attempt

    def _weighed(self) -> Attempt | None:
        """The same where something is in the way: a hold, an outage, retries that wait, or rates."""
        now = self._loop.time()
        if not self._may_send(now):
            return None
        attempt, self._waiting = self._waiting or self._chosen(now), None
        if attempt is None or not self._affordable(attempt, now):
            return None
        if self._breaker.is_open:
            self._probe, self._probe_until = attempt, now + limits.PROBE_PATIENCE_S
            self._alarm.wake_at(self._probe_until)
        self._careful = self._has_rates or self._breaker.is_open or bool(self._retries)
        return attempt

    def _chosen(self, now: float) -> Attempt | None:
        """A retry or a call that was never sent: retries first, but in turns where others would wait for them."""
        if self._breaker.is_open and self._breaker.is_reached:
            # A server that is reached may fail some requests for ever: a probe with a new one tells more.
            return self._fresh() or self._due_retry(now)
        self._retry_turn = not self._retry_turn or len(self._runs) < 2
        if self._retry_turn:
            return self._due_retry(now) or self._fresh()
        return self._fresh() or self._due_retry(now)

    def _may_send(self, now: float) -> bool:
        if self._hold.until > now:
            self._alarm.wake_at(self._hold.until)
            return False
        if self._breaker.is_open:
            if self._probe is not None and self._probe_until > now:
                return False
            if self._breaker.probe_at > now:
                self._alarm.wake_at(self._breaker.probe_at)
                return False
        return True

    def _due_retry(self, now: float) -> Attempt | None:
        """The attempt that has waited for its next try, taken, if its time has come and there is room for it."""
        if not self._retries:
            return None
        due, attempt = self._retries.first()
        if due > now:
            self._alarm.wake_at(due)
            return None
        if self._has_no_room(attempt):
            return None
        return self._retries.pop()

    def _fresh(self) -> Attempt | None:
        """The next call that was never sent: runs take turns, within a run the first chunk goes first."""
        runs, name = self._runs, self.upstream.name
        for _ in range(len(runs)):
            run = runs[0]
            if len(runs) > 1:
                runs.rotate(-1)
            for feed in run.feeds:
                if (call := feed.next_call(name)) is not None:
                    attempt = Attempt(call, feed, run)
                    if not self._has_no_room(attempt):
                        return attempt
                    self._put_back(attempt, self._loop.time())
                    return None
        return None

    def _has_no_room(self, attempt: Attempt) -> bool:
        """Whether the bodies under way leave none for this one; alone any may go."""
        most = self.upstream.max_request_bytes_in_flight
        return self._bytes + len(attempt.call.body) > most and bool(self.active)

    def _affordable(self, attempt: Attempt, now: float) -> bool:
        """Whether the rates allow the attempt now; it goes first when they do otherwise."""
        if not self._has_rates:
            return True
        wait_s = self.rates.wait_s(attempt.call.body, now)
        if wait_s > 0:
            self._waiting = attempt
            self._alarm.wake_at(now + wait_s)
            return False
        attempt.held = self.rates.take(attempt.call.body, now)
        return True

    def _put_back(self, attempt: Attempt, due: float) -> None:
        self._careful = True
        self._retries.put(attempt, due)

    async def _send(self, attempt: Attempt) -> None:
        run = attempt.run
        if run.stopped is not None or attempt.feed.is_closed or time.monotonic() > (until := run.valid_until):
            self._done(attempt)
            self._unsendable(attempt)
            return
        attempt.number += 1
        run.attempts += 1
        began = time.perf_counter()
        if attempt.number == 1:
            attempt.first_at = began
        attempt.started_at = time.time()
        try:
            reply = await self._transport.send(attempt.call.path, attempt.call.body, valid_until=until)
            duration_s = time.perf_counter() - began
            is_long = len(reply.body) > LONG_BYTES
            reading = await asyncio.to_thread(read_reply, reply) if is_long else read_reply(reply)
        except TooLate:
            self._done(attempt)
            attempt.number -= 1
            run.attempts -= 1
            self._unsendable(attempt)
        except TransportFailure as failure:
            self._done(attempt)
            self._failed(attempt, failure, time.perf_counter() - began)
        except asyncio.CancelledError:
            task = attempt.task
            self._done(attempt)
            if not attempt.aborted or self._closing or task is None:
                raise
            task.uncancel()
            attempt.feed.settle_unsent(attempt.call, attempt.number, attempt.retries)
        except Exception as error:
            self._done(attempt)
            log.exception("line %d could not be sent", attempt.call.line)
            attempt.feed.settle(attempt.broken(error))
        else:
            self._done(attempt)
            self._replied(attempt, reply, reading, duration_s)

    def _done(self, attempt: Attempt) -> None:
        attempt.task = None
        self.active.discard(attempt)
        self._bytes -= len(attempt.call.body)
        attempt.run.in_flight -= 1

    def _unsendable(self, attempt: Attempt) -> None:
        """Settle what may not be sent any more, or let it wait where only the lease is in doubt."""
        self.rates.settle(attempt.held, None, self._loop.time(), refused=True)
        if attempt.run.stopped is not None or attempt.feed.is_closed:
            attempt.feed.settle_unsent(attempt.call, attempt.number, attempt.retries)
        else:
            self._put_back(attempt, self._loop.time() + 0.25)

    def _replied(self, attempt: Attempt, reply: Reply, reading: Reading, duration_s: float) -> None:
        self.limit.answers += 1
        if attempt.held is not None:
            refused = reply.status_code == 429
            self.rates.settle(attempt.held, reading.usage, self._loop.time(), refused=refused)
        if reading.code is None:
            self._succeeded(attempt.run)
            attempt.feed.settle(attempt.answered(reading, reply, duration_s))
            return
        self._careful = self._troubled = True
        code, reading = reading.code, reread_without(self._secrets, reply, reading)
        self._push_back(reply, code)
        if reading.usage is not None:
            attempt.wasted += reading.usage.total_tokens
        if reply.status_code in REFUSED_STATUSES:
            attempt.run.refused(self.upstream.name, reply.status_code)
        elif code is ErrorCode.INVALID_REQUEST:
            attempt.run.not_refused()
        wait_s = retry_after_s(millis=reply.retry_after_ms, after=reply.retry_after, now=time.time())
        outage = reply.status_code in OUTAGE_STATUSES
        if outage:
            self._note_outage(attempt, f"it answers {reply.status_code}", sent=True)
        else:
            self._recovered()
        if not is_retried(code, reply.status_code) or not self._retry(
            attempt, code, wait_s=wait_s, free=outage and self._breaker.is_open
        ):
            attempt.feed.settle(attempt.answered(reading, reply, duration_s))

    def _succeeded(self, run: Run) -> None:
        """Note that all is well."""
        if run.refused_in_a_row:
            run.not_refused()
        if self.limit.is_cut:
            self.limit.succeeded()
        if self._troubled:
            self._troubled = False
            self._hold.succeeded()
            self._recovered()

    def _push_back(self, reply: Reply, code: ErrorCode) -> None:
        """Ask for less when the upstream says that it is too much."""
        if reply.status_code not in {429, 503} and code is not ErrorCode.TIMEOUT:
            return
        now = self._loop.time()
        is_stray = not self.limit.pushed_back(now)
        wait_s = retry_after_s(millis=reply.retry_after_ms, after=reply.retry_after, now=time.time())
        # What a stray answer asks holds for its own request: all others are being answered.
        if not is_stray and (reply.status_code == 429 or wait_s is not None):
            self._hold.rate_limited(now, wait_s)

    def _failed(self, attempt: Attempt, failure: TransportFailure, duration_s: float) -> None:
        """Handle an attempt that got no whole answer."""
        self._careful = self._troubled = True
        now = self._loop.time()
        if failure.code is ErrorCode.TIMEOUT:
            self.limit.answers += 1
            self.limit.pushed_back(now)
        outage = failure.code is not ErrorCode.INVALID_RESPONSE and not failure.begun
        if outage:
            self._note_outage(attempt, failure.message, sent=failure.sent)
        free = outage and (self._breaker.is_open or not failure.sent)
        if not self._retry(attempt, failure.code, wait_s=None, free=free, sent=failure.sent):
            attempt.feed.settle(attempt.failed(failure, duration_s))

    def _retry(
        self, attempt: Attempt, code: ErrorCode, *, wait_s: float | None, free: bool, sent: bool = True
    ) -> bool:
        """Let the attempt wait for its next try; false where it has none left, or none before the deadline.

        A free attempt, never sent or lost to an outage, does not count; one that was never sent has no bound.
        """
        run = attempt.run
        if run.stopped is not None or attempt.feed.is_closed:
            return False
        if free and (not sent or attempt.free < FREE_OUTAGE_ATTEMPTS):
            attempt.free += 1
        elif attempt.number - attempt.free >= self.upstream.max_attempts:
            return False
        if wait_s is None:
            wait_s = backoff_s(
                max(1, attempt.number - attempt.free),
                base_s=self.upstream.backoff_base_s,
                cap_s=self.upstream.backoff_cap_s,
                random=self._random,
            )
        if run.deadline is not None and time.time() + wait_s >= run.deadline:
            return False
        attempt.retries = (*attempt.retries, code)
        run.retried += 1
        due = self._loop.time() + wait_s
        self._put_back(attempt, due)
        self._alarm.wake_at(due)
        return True

    def _recovered(self) -> None:
        if self._breaker.succeeded():
            self._probe = None
            self.limit.restart()
            self.offered(self.limit.value)

    def _note_outage(self, attempt: Attempt, why: str, *, sent: bool) -> None:
        """Count a failure that an outage would explain."""
        is_probe = attempt is self._probe
        self._breaker.failed(self._loop.time(), why, sent=sent, fresh=attempt.number == 1, is_probe=is_probe)

    def _end_probe(self, attempt: Attempt) -> None:
        """Allow the next probe once this attempt is over, however it ended: answered, failed, or never sent."""
        if attempt is not self._probe:
            return
        self._probe = None
        if self._breaker.is_open and not self._closing:
            self._alarm.wake_at(max(self._breaker.probe_at, self._loop.time()))

    def drop_retries(self, of: Run | Feed) -> None:
        """Settle the attempts that wait for their next try in a stopped run or a closed feed."""
        dropped = self._retries.remove(of)
        if self._waiting is not None and is_of(self._waiting, of):
            dropped.append(self._waiting)
            self._waiting = None
        for attempt in dropped:
            attempt.feed.settle_unsent(attempt.call, attempt.number, attempt.retries)

    def abort(self, of: Run | Feed) -> None:
        """Cancel the requests in flight of a run or a feed."""
        for attempt in list(self.active):
            if is_of(attempt, of) and attempt.task is not None:
                attempt.aborted = True
                attempt.task.cancel()

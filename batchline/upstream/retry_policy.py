"""The retry policy of a pool: decides what follows an attempt that was answered or has failed.

The outcome is a result or a retry, after Retry-After or a backoff. Push-back lowers the limit, a 429 also pauses
all sending, and repeated failures start an outage, in which only probes are sent. Runs on the dispatcher's loop.
"""

import asyncio
import logging
import time
from math import inf
from random import Random
from typing import Final

from batchline.models.backoff import backoff_s
from batchline.models.error_codes import AUTH_FAILURE_STATUSES, ErrorCode, is_retryable
from batchline.models.retry_after import requested_delay
from batchline.upstream.call_results import ParsedReply, redact
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.scheduler import CallScheduler
from batchline.upstream.transports.base import HttpReply, TransportFailure, secrets_to_redact

log = logging.getLogger(__name__)

DELAY_STATUSES: Final = frozenset({429, 503})
"""Statuses of replies that may ask for a delay."""

CAP_LOG_INTERVAL_S: Final = 60.0
"""Minimum time between two log entries about delays that were shortened."""

OUTAGE_STATUSES: Final = frozenset({502, 503, 504})
MAX_UNCOUNTED_ATTEMPTS: Final = 30
"""Attempts per request that are not counted during an outage, if the server may have seen them."""

UNSENT_RETRY_S: Final = 0.25


class RetryPolicy:
    """Settles or requeues the calls of one upstream, and adapts its limits to the outcome of each attempt."""

    def __init__(self, scheduler: CallScheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._upstream = scheduler.upstream
        self._limit = scheduler.limit
        self._breaker = scheduler.breaker
        self._loop = loop
        self._secrets = secrets_to_redact(scheduler.upstream)
        self._random = Random()  # noqa: S311 - jitter, not a secret
        self._has_failed_recently = False
        self._cap_logged_at = -inf

    def on_reply(
        self, pending: PendingCall, reply: HttpReply, parsed_reply: ParsedReply, duration_s: float
    ) -> None:
        """Settle a call that was answered, or schedule its next attempt."""
        self._limit.replies_since_push_back += 1
        if pending.reservation is not None:
            # Only a 429 is known to cost no tokens; after other failures the estimate stays spent.
            is_rate_limited = reply.status_code == 429
            self._scheduler.rate_limits.reconcile(
                pending.reservation, parsed_reply.usage, self._loop.time(), is_uncharged=is_rate_limited
            )
        if parsed_reply.code is not None:
            self._on_error_reply(pending, parsed_reply.code, reply, parsed_reply, duration_s)
            return
        if pending.session.consecutive_auth_failures:
            pending.session.on_auth_success()
        if self._limit.is_reduced:
            self._limit.on_success()
        if self._has_failed_recently:
            self._has_failed_recently = False
            self._scheduler.pause.on_success()
            self._end_outage()
        pending.queue.settle(pending.to_result(parsed_reply, reply, duration_s))

    def _on_error_reply(
        self, pending: PendingCall, code: ErrorCode, reply: HttpReply, parsed_reply: ParsedReply, duration_s: float
    ) -> None:
        self._scheduler.is_constrained = self._has_failed_recently = True
        parsed_reply = redact(self._secrets, reply, parsed_reply)
        if parsed_reply.usage is not None:
            pending.wasted_tokens += parsed_reply.usage.total_tokens
        if reply.status_code in AUTH_FAILURE_STATUSES:
            pending.session.on_auth_failure(self._upstream.name, reply.status_code)
        elif code is ErrorCode.INVALID_REQUEST:
            pending.session.on_auth_success()
        wait_s = self._read_delay(reply)
        if reply.status_code in DELAY_STATUSES or code is ErrorCode.TIMEOUT:
            is_overloaded = self._limit.on_push_back(self._loop.time())
            # The Retry-After of a stray reply applies to its own request only: the others are being answered.
            if is_overloaded and (reply.status_code == 429 or wait_s is not None):
                self._scheduler.pause.extend(self._loop.time(), wait_s)
        is_outage = reply.status_code in OUTAGE_STATUSES
        if is_outage:
            self._record_outage_failure(pending, f"it answers {reply.status_code}", sent=True)
        else:
            self._end_outage()
        if not is_retryable(code, reply.status_code) or not self._schedule_retry(
            pending, code, wait_s=wait_s, free=is_outage and self._breaker.is_open
        ):
            pending.queue.settle(pending.to_result(parsed_reply, reply, duration_s))

    def _read_delay(self, reply: HttpReply) -> float | None:
        """Return the delay in seconds that the reply asks for, or None if it asks for none."""
        if reply.status_code not in DELAY_STATUSES:
            return None
        delay = requested_delay(reply.headers, reply.body, time.time())
        if delay is None:
            return None
        if delay.is_capped and self._loop.time() - self._cap_logged_at >= CAP_LOG_INTERVAL_S:
            self._cap_logged_at = self._loop.time()
            log.warning(
                "upstream %s answered %d and asks for a delay of %.0f s (%s); trying again after %.0f s",
                self._upstream.name,
                reply.status_code,
                delay.requested_s,
                delay.source,
                delay.delay_s,
            )
        return delay.delay_s

    def on_failure(self, pending: PendingCall, failure: TransportFailure, duration_s: float) -> None:
        """Handle an attempt that got no complete reply: count it, then retry or settle the call."""
        self._scheduler.is_constrained = self._has_failed_recently = True
        if failure.code is ErrorCode.TIMEOUT:
            self._limit.replies_since_push_back += 1
            self._limit.on_push_back(self._loop.time())
        is_outage = failure.code is not ErrorCode.INVALID_RESPONSE and not failure.response_started
        if is_outage:
            self._record_outage_failure(pending, failure.message, sent=failure.sent)
        is_uncounted = is_outage and (self._breaker.is_open or not failure.sent)
        if not self._schedule_retry(pending, failure.code, wait_s=None, free=is_uncounted, sent=failure.sent):
            pending.queue.settle(pending.to_failed_result(failure, duration_s))

    def drop_unsent(self, pending: PendingCall) -> None:
        """Settle a call that may not be sent, or requeue it if only the permit has run out."""
        self._scheduler.rate_limits.reconcile(pending.reservation, None, self._loop.time(), is_uncharged=True)
        if pending.session.stop_reason is not None or pending.queue.is_closed:
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)
        else:
            self._scheduler.requeue(pending, self._loop.time() + UNSENT_RETRY_S)

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
        elif pending.attempts - pending.uncounted_attempts >= self._upstream.max_attempts:
            return False
        if wait_s is None:
            wait_s = backoff_s(
                max(1, pending.attempts - pending.uncounted_attempts),
                base_s=self._upstream.backoff_base_s,
                cap_s=self._upstream.backoff_cap_s,
                random=self._random,
            )
        if session.deadline is not None and time.time() + wait_s >= session.deadline:
            return False
        pending.retries = (*pending.retries, code)
        session.retried += 1
        self._scheduler.requeue(pending, self._loop.time() + wait_s)
        return True

    def _record_outage_failure(self, pending: PendingCall, cause: str, *, sent: bool) -> None:
        """Count a failure that may be due to an outage."""
        is_probe = pending is self._scheduler.probe
        self._breaker.on_failure(
            self._loop.time(), cause, sent=sent, is_first_attempt=pending.attempts == 1, is_probe=is_probe
        )

    def _end_outage(self) -> None:
        if self._breaker.on_success():
            self._scheduler.probe = None
            self._limit.restart_low()
            self._scheduler.wake_workers()

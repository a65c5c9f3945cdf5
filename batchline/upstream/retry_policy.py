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

from msgspec.structs import replace

from batchline.models.backoff import backoff_s
from batchline.models.batches import PauseCode
from batchline.models.error_codes import ErrorCode
from batchline.models.failure_streak import failure_kind, hint
from batchline.models.outcomes import Judgement, OutReason, RetryClass, retry_class_of_failure
from batchline.models.retry_after import requested_delay
from batchline.upstream.dialects.judge import judge
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.scheduler import CallScheduler
from batchline.upstream.transports.base import HttpReply, TransportFailure, secrets_to_redact

log = logging.getLogger(__name__)

DELAY_STATUSES: Final = frozenset({429, 503})
"""Statuses of replies that may ask for a delay."""

CAP_LOG_INTERVAL_S: Final = 60.0
"""Minimum time between two log entries about delays that were shortened."""

OUTAGE_STATUSES: Final = frozenset({502, 503, 504, 520, 521, 522, 523, 530})
"""Statuses of gateways whose server is down; 520 and above are Cloudflare's."""

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

    def on_reply(self, pending: PendingCall, reply: HttpReply, judgement: Judgement, duration_s: float) -> None:
        """Settle a call that was answered, or schedule its next attempt."""
        self._limit.replies_since_push_back += 1
        if pending.reservation is not None:
            # Only a 429 is known to cost no tokens; after other failures the estimate stays spent.
            is_rate_limited = judgement.acts_as == 429
            self._scheduler.rate_limits.reconcile(
                pending.reservation, judgement.usage, self._loop.time(), is_uncharged=is_rate_limited
            )
        if judgement.code is not None:
            self._on_error_reply(pending, judgement.code, reply, judgement, duration_s)
            return
        pending.session.streaks.on_success(self._upstream.name, pending.call.model)
        if self._limit.is_reduced:
            self._limit.on_success()
        if self._has_failed_recently:
            self._has_failed_recently = False
            self._scheduler.pause.on_success()
            self._end_outage()
        pending.queue.settle(pending.to_result(judgement, reply, duration_s))

    def _on_error_reply(
        self, pending: PendingCall, code: ErrorCode, reply: HttpReply, judgement: Judgement, duration_s: float
    ) -> None:
        self._scheduler.is_constrained = self._has_failed_recently = True
        judgement = self._redact(pending, reply, judgement)
        if judgement.usage is not None:
            pending.wasted_tokens += judgement.usage.total_tokens
        wait_s = self._on_push_back(reply, judgement)
        # An error inside a 2xx comes from a server that is up, whatever it stands for.
        is_outage = reply.status_code in OUTAGE_STATUSES
        if is_outage:
            self._record_outage_failure(pending, f"it answers {reply.status_code}", sent=True)
        else:
            self._end_outage()
        if self._stop_if_upstream_out(pending, judgement):
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)
            return
        is_retried = self._retry_reply(pending, code, judgement, wait_s, is_outage=is_outage)
        if not is_outage and judgement.acts_as != 429:
            self._count_identical(
                pending, code, judgement.message, status=judgement.acts_as, is_final=not is_retried
            )
        if not is_retried:
            pending.queue.settle(pending.to_result(judgement, reply, duration_s))

    def _redact(self, pending: PendingCall, reply: HttpReply, judgement: Judgement) -> Judgement:
        """Return the judgement without the secrets that the upstream may have echoed."""
        body, message = reply.body, judgement.message or ""
        for secret in self._secrets:
            body = body.replace(secret, b"***")
            message = message.replace(secret.decode(), "***")  # it may name the address of a redirect
        if body is not reply.body:
            # The codes of the judgement stay; only its texts are those of the redacted body.
            judgement = replace(judgement, body=judge(pending.call.path, reply.status_code, body).body)
        return judgement if message == (judgement.message or "") else replace(judgement, message=message)

    def _on_push_back(self, reply: HttpReply, judgement: Judgement) -> float | None:
        """Adapt the limits to a reply of an upstream that is overloaded; return the wait that it asks for."""
        status = judgement.acts_as
        if status not in DELAY_STATUSES and judgement.code is not ErrorCode.TIMEOUT:
            return None
        wait_s = self._read_delay(reply) if status in DELAY_STATUSES else None
        is_overloaded = self._limit.on_push_back(self._loop.time())
        # The wait that a stray reply asks for applies to its own request only: the others are being answered.
        if is_overloaded and (status == 429 or wait_s is not None):
            self._scheduler.pause.extend(self._loop.time(), wait_s)
        return wait_s

    def _stop_if_upstream_out(self, pending: PendingCall, judgement: Judgement) -> bool:
        """Stop the batch if the upstream refuses key or quota; return True if the request is then left pending."""
        session, reason = pending.session, judgement.out_reason
        is_out = judgement.retry is RetryClass.UPSTREAM_OUT
        is_refused = session.streaks.is_key_refused(self._upstream.name, pending.call.line, judgement)
        if is_out or is_refused:
            limit: PauseCode = "quota" if reason is OutReason.QUOTA else "unauthorized"
            cause = f"upstream {self._upstream.name} answers {judgement.acts_as}: {judgement.message}"
            session.stop_at_limit(limit, _with_hint(cause, pending, judgement.acts_as, judgement.message))
        return is_out

    def _retry_reply(
        self, pending: PendingCall, code: ErrorCode, judgement: Judgement, wait_s: float | None, *, is_outage: bool
    ) -> bool:
        """Queue the call for another attempt if its failure is worth one; return False if not."""
        is_once = judgement.retry is RetryClass.ONCE
        if judgement.retry is not RetryClass.AS_STATUS and (not is_once or pending.was_repeated):
            return False
        is_rate_limited = judgement.acts_as == 429
        pending.rate_limited = pending.rate_limited + 1 if is_rate_limited else 0
        is_free = is_rate_limited or (is_outage and self._breaker.is_open)
        is_retried = self._schedule_retry(pending, code, wait_s=wait_s, free=is_free, sent=not is_rate_limited)
        # Only if it is: a session that has stopped leaves the second attempt to the next runner.
        pending.was_repeated |= is_once and is_retried
        return is_retried

    def _count_identical(
        self,
        pending: PendingCall,
        code: ErrorCode,
        message: str | None,
        *,
        status: int | None = None,
        is_final: bool = True,
    ) -> None:
        """Count a failed attempt, and stop the batch if too many requests in a row failed in the same way."""
        session, call, upstream = pending.session, pending.call, self._upstream.name
        kind = failure_kind(status, code, message)
        length = session.streaks.on_failure(upstream, call.model, call.line, kind, is_final=is_final)
        if length is not None:
            model = f" of {call.model}" if call.model else ""
            cause = f"{length} requests{model} in a row failed alike at upstream {upstream}: {message}"
            session.stop_at_limit("identical_failures", _with_hint(cause, pending, status, message))

    def _read_delay(self, reply: HttpReply) -> float | None:
        """Return the delay in seconds that the reply asks for, or None if it asks for none."""
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
        is_retried = retry_class_of_failure(failure.code) is RetryClass.AS_STATUS and self._schedule_retry(
            pending, failure.code, wait_s=None, free=is_uncounted, sent=failure.sent
        )
        if not is_retried or not is_outage:
            self._count_identical(pending, failure.code, failure.message, is_final=not is_retried)
        if not is_retried:
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
                max(1, pending.attempts - pending.uncounted_attempts, pending.rate_limited),
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


def _with_hint(cause: str, pending: PendingCall, status: int | None, message: str | None) -> str:
    advice = hint(status, message, pending.call.model)
    return f"{cause}; {advice}" if advice else cause

"""Sends single attempts of calls, and passes the outcome of each to the retry policy."""

import asyncio
import logging
import time

from batchline.models.outcomes import Judgement, apply_output_rules
from batchline.models.schema_check import RequestedSchema, requested_schema
from batchline.upstream.call_results import Call
from batchline.upstream.dialects.judge import (
    MAX_INLINE_BYTES,
    Expectation,
    expectation_of,
    judge,
    judge_fully,
    judge_quickly,
)
from batchline.upstream.dialects.outputs import find_violation
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.retry_policy import RetryPolicy
from batchline.upstream.scheduler import CallScheduler
from batchline.upstream.transports.base import DeadlinePassed, HttpReply, Transport, TransportFailure

log = logging.getLogger(__name__)

MAX_QUICK_BYTES = 2**18
"""Size of a reply above which even decoding it on the loop would delay all other requests."""

MAX_INLINE_SCHEMA_BYTES = 2**13
"""Size of an answer above which its schema is checked on a thread; 1 KB takes some 50 µs."""

MAX_KNOWN_SCHEMAS = 128


class RequestSender:
    """Sends the calls of one upstream, on the dispatcher's loop."""

    def __init__(self, transport: Transport, scheduler: CallScheduler, retry_policy: RetryPolicy) -> None:
        self._transport = transport
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        self._takes_any_answer = scheduler.upstream.answers == "any"
        self._known_schemas: set[bytes] = set()
        self.is_closing = False

    async def send(self, pending: PendingCall) -> None:
        """Send one attempt of a call that the scheduler counts as in flight, and pass on its outcome."""
        session = pending.session
        if (
            session.stop_reason is not None
            or pending.queue.is_closed
            or time.monotonic() > (until := session.permit.until)
        ):
            self._scheduler.remove_in_flight(pending)
            self._retry_policy.drop_unsent(pending)
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
            judgement = self._judge_quickly(pending.call, reply)
            if judgement is None or _may_be_flawed(pending.call, judgement):
                judgement = await self._judge_fully(pending, reply, judgement)
        except DeadlinePassed:
            self._scheduler.remove_in_flight(pending)
            pending.attempts -= 1
            session.attempts -= 1
            self._retry_policy.drop_unsent(pending)
        except TransportFailure as failure:
            self._scheduler.remove_in_flight(pending)
            self._retry_policy.on_failure(pending, failure, time.perf_counter() - start)
        except asyncio.CancelledError:
            task = pending.task  # read first: the next line clears it
            self._scheduler.remove_in_flight(pending)
            # `abort_in_flight` cancels the request, not the worker: uncancel it, so that it continues. Any other
            # cancellation is meant for the worker.
            if not pending.is_aborted or self.is_closing or task is None:
                raise
            task.uncancel()
            pending.queue.settle_unsent(pending.call, pending.attempts, pending.retries)
        except Exception as error:
            self._scheduler.remove_in_flight(pending)
            log.exception("line %d could not be sent", pending.call.line)
            pending.queue.settle(pending.to_error_result(error))
        else:
            self._scheduler.remove_in_flight(pending)
            self._retry_policy.on_reply(pending, reply, judgement, duration_s)

    def _judge_quickly(self, call: Call, reply: HttpReply) -> Judgement | None:
        """Return the judgement of an ordinary answer, or None for any other reply, and for a long one."""
        if len(reply.body) > MAX_QUICK_BYTES:
            return None
        return judge_quickly(call.path, reply.status_code, reply.body, self._expectation_of(call))

    async def _judge_fully(self, pending: PendingCall, reply: HttpReply, judgement: Judgement | None) -> Judgement:
        """Return the judgement of any reply, by the options of its batch for truncated and invalid answers.

        `judgement` is that of `_judge_quickly`.
        """
        call = pending.call
        if judgement is None:
            arguments = (call.path, reply.status_code, reply.body, self._expectation_of(call))
            location = next((value for name, value in reply.headers if name == "location"), None)
            if len(reply.body) > MAX_INLINE_BYTES:
                judgement = await asyncio.to_thread(judge, *arguments, location=location)
            else:
                judgement = judge_fully(*arguments, location=location)
        if judgement.code is not None:
            return judgement
        violation, options = None, pending.session.options
        if judgement.mark is None and (schema := requested_schema(call.path, bytes(call.body))) is not None:
            violation = await self._find_violation(call.path, schema, judgement.body)
        return apply_output_rules(
            judgement,
            violation,
            on_truncated=options.on_truncated,
            on_invalid_output=options.on_invalid_output,
            has_retried=pending.was_repeated,
        )

    def _expectation_of(self, call: Call) -> Expectation:
        return expectation_of(call.path, call.body, any_answer=self._takes_any_answer)

    async def _find_violation(self, path: str, schema: RequestedSchema, body: bytes) -> str | None:
        """Return the answer's first violation of the schema that its request asked for, or None."""
        if schema.schema in self._known_schemas and len(body) <= MAX_INLINE_SCHEMA_BYTES:
            return find_violation(path, schema, body)
        # Compiling a schema can take milliseconds.
        violation = await asyncio.to_thread(find_violation, path, schema, body)
        if len(self._known_schemas) >= MAX_KNOWN_SCHEMAS:
            self._known_schemas.clear()
        self._known_schemas.add(schema.schema)
        return violation

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def _may_be_flawed(call: Call, judgement: Judgement) -> bool:
    """Return True if an ordinary answer has a mark, or a schema that it has to fit."""
    return judgement.mark is not None or requested_schema(call.path, bytes(call.body)) is not None

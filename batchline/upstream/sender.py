"""Sends single attempts of calls, and passes the outcome of each to the retry policy."""

import asyncio
import logging
import time

from batchline.upstream.call_results import MAX_INLINE_PARSE_BYTES, parse_reply
from batchline.upstream.pending_call import PendingCall
from batchline.upstream.retry_policy import RetryPolicy
from batchline.upstream.scheduler import CallScheduler
from batchline.upstream.transports.base import DeadlinePassed, Transport, TransportFailure

log = logging.getLogger(__name__)


class RequestSender:
    """Sends the calls of one upstream, on the dispatcher's loop."""

    def __init__(self, transport: Transport, scheduler: CallScheduler, retry_policy: RetryPolicy) -> None:
        self._transport = transport
        self._scheduler = scheduler
        self._retry_policy = retry_policy
        self.is_closing = False

    async def send(self, pending: PendingCall) -> None:
        """Send one attempt of a call that the scheduler counts as in flight, and pass on its outcome."""
        session = pending.session
        if (
            session.stop_reason is not None
            or pending.queue.is_closed
            or time.monotonic() > (until := session.valid_until)
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
            # Parsing a long reply on the loop would delay all other requests.
            is_long = len(reply.body) > MAX_INLINE_PARSE_BYTES
            parsed_reply = await asyncio.to_thread(parse_reply, reply) if is_long else parse_reply(reply)
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
            self._retry_policy.on_reply(pending, reply, parsed_reply, duration_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

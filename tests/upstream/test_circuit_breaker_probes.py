"""A probe that ends without an answer: the next one is sent all the same, and the upstream is used again."""

import asyncio
import json
import threading
import time
from collections.abc import Callable

import pytest
from helpers.dispatcher_calls import call_all, collect_results, make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.scripted_server import COMPLETION, error_reply, reply, silence

from batchline.models.error_codes import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream import scheduler
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.circuit_breaker import FAILURES_TO_TRIP, FIRST_PROBE_INTERVAL_S
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.stop_reason import StopReason
from batchline.upstream.transports.base import DeadlinePassed, HttpReply

BUSY = FAILURES_TO_TRIP + 5
"""Requests that fail before the upstream counts as down."""


def is_down(run: BatchSession) -> bool:
    return "is down" in (run.snapshot().paused or "")


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_next_batch_is_sent_after_aborted_probe(how: str, serve: Callable, make_dispatcher: Callable) -> None:
    acts = {"down": error_reply(503), "hangs": silence(), "well": reply()}
    state = ["down"]
    server = serve(lambda _: acts[state[-1]])
    dispatcher = make_dispatcher(server.base_url, max_in_flight=BUSY, max_attempts=4)
    with open_session(dispatcher, grace_s=0.05) as run:
        feed = run.open_queue(0)
        feed.put(make_calls(make_bodies(50)))
        until(lambda: is_down(run) and run.snapshot().in_flight == 0)
        state.append("hangs")
        until(lambda: run.snapshot().in_flight == 1)
        if how == "cancelled":
            run.stop(StopReason(ErrorCode.BATCH_CANCELLED, "enough"))
            feed.end_input()
            collect_results(feed)
        feed.close()
    state.append("well")

    answers = call_all(dispatcher, make_bodies(20))

    assert {answer.code for answer in answers} == {None}


def test_probe_of_batch_without_valid_lease_does_not_block_another(
    serve: Callable, make_dispatcher: Callable
) -> None:
    recovered = threading.Event()
    server = serve(lambda _: reply() if recovered.is_set() else error_reply(503))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=BUSY, max_attempts=4)

    with open_session(dispatcher) as stale, stale.open_queue(0) as waits, open_session(dispatcher) as other:
        waits.put(make_calls(make_bodies(50)))
        until(lambda: is_down(stale))
        stale.renew(-1.0)
        recovered.set()
        time.sleep(0.8)  # the next probe is chosen meanwhile, and not sent
        with other.open_queue(0) as goes:
            goes.put(make_calls(make_bodies(20), first=101))
            goes.end_input()
            answers = collect_results(goes)

    assert {answer.code for answer in answers} == {None}


def test_hanging_probe_does_not_block_recovered_upstream(
    serve: Callable, make_dispatcher: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PROBE_TIMEOUT_S", 0.3)
    acts = {"down": error_reply(503), "hangs": silence(), "well": reply()}
    state = ["down"]
    server = serve(lambda _: acts[state[-1]])
    with (
        open_session(make_dispatcher(server.base_url, max_in_flight=BUSY, min_in_flight=4, max_attempts=4)) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(50)))
        until(lambda: is_down(run) and run.snapshot().in_flight == 0)
        state.append("hangs")
        until(lambda: run.snapshot().in_flight == 1)
        state.append("well")

        until(lambda: run.snapshot().completed >= 40)


ANSWER = json.dumps(COMPLETION).encode()


class FailingProbeTransport:
    """A transport that is down until a probe meets a fault on this program's side, and well from then on."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault
        self._last_at = time.monotonic()
        self._is_well = False

    async def send(self, path: str, body: bytes, *, valid_until: float = 0.0) -> HttpReply:
        del path, body, valid_until
        pause_s, self._last_at = time.monotonic() - self._last_at, time.monotonic()
        await asyncio.sleep(0)
        if self._is_well:
            return HttpReply(200, ANSWER, 0.001)
        if pause_s < FIRST_PROBE_INTERVAL_S / 2:
            return HttpReply(503, b"{}", 0.001)
        self._is_well = True
        raise self._fault

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("fault", [DeadlinePassed(), ZeroDivisionError("a defect")], ids=["too late", "a defect"])
def test_requests_continue_after_probe_that_was_not_sent(fault: Exception) -> None:
    upstream = Upstream(base_url="http://any", max_in_flight=BUSY, backoff_base_s=0.01, backoff_cap_s=0.05)

    with Dispatcher([upstream], open_transport=lambda _: FailingProbeTransport(fault)) as dispatcher:
        answers = call_all(dispatcher, make_bodies(40))

    assert sum(answer.code is None for answer in answers) >= 39

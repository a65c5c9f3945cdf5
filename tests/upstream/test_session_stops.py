"""Ends of sessions: by a stop, by the deadline, or with their dispatcher."""

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from helpers.dispatcher_calls import collect_results, make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.scripted_server import ScriptedServer, error_reply, reply

from batchline.models.error_codes import ErrorCode
from batchline.upstream.call_results import CallResult
from batchline.upstream.stop_reason import StopReason

STOPS = [ErrorCode.BATCH_CANCELLED, ErrorCode.BATCH_EXPIRED, ErrorCode.BATCH_FAILED]


@pytest.mark.parametrize("code", STOPS)
def test_stopped_session_finishes_calls_in_flight_and_fails_the_rest(
    code: ErrorCode, gated: ScriptedServer, gate: threading.Event, make_dispatcher: Callable
) -> None:
    with open_session(make_dispatcher(gated.base_url, max_in_flight=4)) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(50)))
        feed.end_input()
        until(lambda: len(gated.received) == 4)
        run.stop(StopReason(code, "that is enough"))
        unsent: list[CallResult] = []
        until(lambda: unsent.extend(feed.wait_for_results(0.02)) or len(unsent) == 46)
        gate.set()
        answers = unsent + collect_results(feed)

    assert Counter(answer.code for answer in answers) == {None: 4, code: 46}
    assert {answer.message for answer in answers if answer.code} == {"that is enough"}
    assert len(gated.received) == 4


def test_calls_in_flight_beyond_the_grace_period_get_the_stop_code(
    gated: ScriptedServer, make_dispatcher: Callable
) -> None:
    with (
        open_session(make_dispatcher(gated.base_url, max_in_flight=4), grace_s=0.2) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(10)))
        feed.end_input()
        until(lambda: len(gated.received) == 4)
        run.stop(StopReason(ErrorCode.BATCH_CANCELLED, "enough"))
        answers = collect_results(feed)

    assert [(answer.code, answer.attempts) for answer in answers] == (
        [("batch_cancelled", 1)] * 4 + [("batch_cancelled", 0)] * 6
    )


def test_pause_waits_for_calls_in_flight_and_leaves_the_rest_unsettled(
    gated: ScriptedServer, gate: threading.Event, make_dispatcher: Callable
) -> None:
    with (
        open_session(make_dispatcher(gated.base_url, max_in_flight=4), grace_s=0.0) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(50)))
        until(lambda: len(gated.received) == 4)
        run.stop(StopReason(None, "paused", limit="by_user"))
        time.sleep(0.3)
        assert not feed.is_done, "requests in flight are waited for beyond the grace period"
        gate.set()
        answers = collect_results(feed)

    assert [answer.code for answer in answers] == [None] * 4
    assert len(gated.received) == 4


def test_stop_during_a_pause_aborts_calls_in_flight_after_the_grace_period(
    gated: ScriptedServer, make_dispatcher: Callable
) -> None:
    with (
        open_session(make_dispatcher(gated.base_url, max_in_flight=4), grace_s=0.1) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(10)))
        until(lambda: len(gated.received) == 4)
        run.stop(StopReason(None, "paused", limit="by_user"))
        run.stop(StopReason(ErrorCode.BATCH_CANCELLED, "enough"))

        assert collect_results(feed) == []
        assert run.stop_reason is not None
        assert run.stop_reason.is_pause


def test_pause_outlasts_the_deadline(
    gated: ScriptedServer, gate: threading.Event, make_dispatcher: Callable
) -> None:
    deadline = time.time() + 0.3
    with (
        open_session(make_dispatcher(gated.base_url), grace_s=0.0, deadline=deadline) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(1)))
        until(lambda: gated.received)
        run.stop(StopReason(None, "paused", limit="by_user"))
        time.sleep(0.6)
        gate.set()

        assert [answer.code for answer in collect_results(feed)] == [None]


def test_deadline_passed_by_a_clock_jump_expires_the_session(
    gated: ScriptedServer, make_dispatcher: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchline.upstream.batch_session.DEADLINE_CHECK_S", 0.05)
    here = time.time
    deadline = here() + 3_600
    with (
        open_session(make_dispatcher(gated.base_url), grace_s=0.1, deadline=deadline) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(5)))
        feed.end_input()
        until(lambda: gated.received)
        monkeypatch.setattr(time, "time", lambda: here() + 7_200)
        answers = collect_results(feed)

    assert {answer.code for answer in answers} == {"batch_expired"}


def test_session_after_machine_sleep_sends_nothing_until_renewal(
    serve: Callable, make_dispatcher: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: reply())
    with open_session(make_dispatcher(server.base_url)) as run, run.open_queue(0) as feed:
        run.renew(60.0)
        here = time.time
        monkeypatch.setattr(time, "time", lambda: here() + 50)  # as the monotonic clock stands still meanwhile
        feed.put(make_calls(make_bodies(5)))
        feed.end_input()
        time.sleep(0.5)
        assert not server.received

        run.renew(60.0)
        assert [answer.code for answer in collect_results(feed)] == [None] * 5


def test_second_stop_is_ignored(make_dispatcher: Callable, gated: ScriptedServer) -> None:
    with open_session(make_dispatcher(gated.base_url), grace_s=0.1) as run, run.open_queue(0) as feed:
        run.stop(StopReason(ErrorCode.BATCH_CANCELLED, "first"))
        run.stop(StopReason(ErrorCode.BATCH_FAILED, "second"))
        feed.put(make_calls(make_bodies(5)))
        feed.end_input()
        answers = collect_results(feed)

    assert {(answer.code, answer.message) for answer in answers} == {("batch_cancelled", "first")}
    assert gated.received == []


def test_request_waiting_for_retry_gets_the_stop_code(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: error_reply(429, retry_after="3600"))

    with open_session(make_dispatcher(server.base_url)) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(1)))
        feed.end_input()
        until(lambda: run.snapshot().retried == 1)
        run.stop(StopReason(ErrorCode.BATCH_CANCELLED, "enough"))
        [answer] = collect_results(feed)

    assert (answer.code, answer.attempts, answer.retries) == ("batch_cancelled", 1, ("rate_limited",))


def test_stop_without_code_leaves_unsent_requests_without_result(
    gated: ScriptedServer, gate: threading.Event, make_dispatcher: Callable
) -> None:
    with open_session(make_dispatcher(gated.base_url, max_in_flight=4)) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(50)))
        until(lambda: len(gated.received) == 4)
        run.stop(StopReason(None, "the worker is told to end"))
        gate.set()
        answers = collect_results(feed)

    assert [answer.code for answer in answers] == [None] * 4


def test_stopped_session_does_not_affect_another(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(after_s=0.005))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=4)

    with open_session(dispatcher, grace_s=0.0) as doomed, open_session(dispatcher) as other:
        feeds = [doomed.open_queue(0), other.open_queue(0)]
        for feed, first in zip(feeds, (1, 101), strict=True):
            feed.put(make_calls(make_bodies(100), first=first))
            feed.end_input()
        until(lambda: doomed.snapshot().completed > 5)
        doomed.stop(StopReason(ErrorCode.BATCH_CANCELLED, "enough"))
        answers = collect_results(*feeds)

    assert {answer.code for answer in answers if answer.call.line > 100} == {None}
    assert len(answers) == 200


def test_unsent_requests_expire_at_the_deadline(gated: ScriptedServer, make_dispatcher: Callable) -> None:
    dispatcher = make_dispatcher(gated.base_url, max_in_flight=4)

    with open_session(dispatcher, deadline=time.time() + 0.3, grace_s=0.1) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        feed.end_input()
        answers = collect_results(feed)

    assert {answer.code for answer in answers} == {"batch_expired"}
    assert len(gated.received) == 4


def test_calls_in_flight_at_the_deadline_finish_within_the_grace_period(
    serve: Callable, make_dispatcher: Callable
) -> None:
    dispatcher = make_dispatcher(serve(lambda _: reply(after_s=0.5)).base_url, max_in_flight=2)

    with open_session(dispatcher, deadline=time.time() + 0.2) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(6)))
        feed.end_input()
        answers = collect_results(feed)

    assert Counter(answer.code for answer in answers) == {None: 2, "batch_expired": 4}


def test_session_past_its_deadline_sends_nothing(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply())

    with (
        open_session(make_dispatcher(server.base_url), deadline=time.time() - 1) as run,
        run.open_queue(0) as feed,
    ):
        until(lambda: run.stop_reason is not None)
        feed.put(make_calls(make_bodies(5)))
        feed.end_input()
        answers = collect_results(feed)

    assert {answer.code for answer in answers} == {"batch_expired"}
    assert server.received == []


def test_session_without_valid_lease_sends_nothing_until_renewal(
    serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: reply())
    dispatcher = make_dispatcher(server.base_url)

    with open_session(dispatcher) as stale, open_session(dispatcher) as other, stale.open_queue(0) as feed:
        stale.renew(-1.0)
        feed.put(make_calls(make_bodies(5)))
        feed.end_input()
        with other.open_queue(0) as beside:
            beside.put(make_calls(make_bodies(200), first=101))
            beside.end_input()
            collect_results(beside)
        before = len(server.received)
        stale.renew(60.0)
        answers = collect_results(feed)

    assert before == 200
    assert [answer.code for answer in answers] == [None] * 5


def caller_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "dispatcher"}


def test_dispatcher_closed_with_calls_in_flight_ends_its_thread(
    gated: ScriptedServer, make_dispatcher: Callable
) -> None:
    before = caller_threads()
    dispatcher = make_dispatcher(gated.base_url)
    open_session(dispatcher).open_queue(0).put(make_calls(make_bodies(100)))
    until(lambda: len(gated.received) == 64)

    dispatcher.close()

    assert caller_threads() == before


def test_closed_dispatcher_and_session_can_be_closed_again(make_dispatcher: Callable) -> None:
    before = caller_threads()
    dispatcher = make_dispatcher("http://127.0.0.1:9")
    run = open_session(dispatcher)

    dispatcher.close()
    dispatcher.close()
    run.close()

    assert caller_threads() == before

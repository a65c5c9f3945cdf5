"""Runs and feeds side by side at one caller: whose turn it is, and that no call is lost."""

import json
import threading
import time
from collections.abc import Callable

import pytest
from helpers.dispatcher_calls import call_all, collect_results, make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.scripted_server import COMPLETION, ScriptedServer, chunked, cut_off, error_reply, raw, reply, silence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchline.models.upstreams import Upstream


def test_sessions_and_queues_share_the_limit_of_the_upstream(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(after_s=0.005))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=5)

    with open_session(dispatcher) as one, open_session(dispatcher) as other:
        feeds = [run.open_queue(order) for run in (one, other) for order in range(3)]
        for at, feed in enumerate(feeds):
            feed.put(make_calls(make_bodies(20), first=1 + 20 * at))
            feed.end_input()
        answers = collect_results(*feeds)

    assert [answer.call.line for answer in answers] == list(range(1, 121))
    assert server.most_at_once == 5


def test_queue_with_lowest_order_is_sent_first(
    gated: ScriptedServer, gate: threading.Event, make_dispatcher: Callable
) -> None:
    with open_session(make_dispatcher(gated.base_url, max_in_flight=1)) as run:
        later, sooner = run.open_queue(1), run.open_queue(0)
        later.put(make_calls(make_bodies(50), first=51))
        until(lambda: len(gated.received) == 1)
        sooner.put(make_calls(make_bodies(50)))
        for feed in (later, sooner):
            feed.end_input()
        gate.set()
        answers = collect_results(later, sooner)

    started = sorted(answers, key=lambda answer: answer.started_at)
    assert [answer.call.line for answer in started] == [51, *range(1, 51), *range(52, 101)]


def test_two_sessions_take_turns(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(after_s=0.002))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=1)

    with open_session(dispatcher) as one, open_session(dispatcher) as other:
        feeds = [one.open_queue(0), other.open_queue(0)]
        for feed, first in zip(feeds, (1, 101), strict=True):
            feed.put(make_calls(make_bodies(100), first=first))
            feed.end_input()
        answers = collect_results(*feeds)

    started = sorted(answers, key=lambda answer: answer.started_at)
    of_first = sum(answer.call.line <= 100 for answer in started[20:100])
    assert 30 <= of_first <= 50


def test_each_upstream_gets_its_own_requests_and_key(serve: Callable, make_dispatcher: Callable) -> None:
    servers = {name: serve(lambda _: reply()) for name in ("left", "right")}
    upstreams = [
        Upstream(name=name, base_url=server.base_url, api_key=f"sk-{name}") for name, server in servers.items()
    ]

    with open_session(make_dispatcher(upstreams=upstreams)) as run, run.open_queue(0) as feed:
        for name in servers:
            feed.put(make_calls([{"model": name, "user": name}] * 10, upstream=name))
        feed.end_input()
        collect_results(feed)

    for name, server in servers.items():
        assert [request.prompt for request in server.received] == [name] * 10
        assert {request.headers["authorization"] for request in server.received} == {f"Bearer sk-{name}"}


def test_upstream_that_is_down_does_not_block_another(serve: Callable, make_dispatcher: Callable) -> None:
    down, up = ScriptedServer(lambda _: reply()).reserve_port(), serve(lambda _: reply())
    upstreams = [Upstream(name="down", base_url=down.base_url), Upstream(name="up", base_url=up.base_url)]

    with (
        open_session(make_dispatcher(upstreams=upstreams)) as run,
        run.open_queue(0) as waits,
        run.open_queue(1) as goes,
    ):
        waits.put(make_calls(make_bodies(50), upstream="down"))
        goes.put(make_calls(make_bodies(50), upstream="up", first=51))
        goes.end_input()
        answers = collect_results(goes)

    assert [answer.code for answer in answers] == [None] * 50


def test_session_progress_counts_results_attempts_and_tokens(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(400) if request.prompt == "3" else reply())

    with open_session(make_dispatcher(server.base_url)) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(10)))
        feed.end_input()
        collect_results(feed)
        progress = run.snapshot()

    assert (progress.completed, progress.failed, progress.in_flight) == (9, 1, 0)
    assert (progress.attempts, progress.retried) == (10, 0)
    assert (progress.prompt_tokens, progress.completion_tokens, progress.total_tokens) == (45, 18, 63)


def test_queue_accepts_calls_until_its_input_ends(serve: Callable, make_dispatcher: Callable) -> None:
    with open_session(make_dispatcher(serve(lambda _: reply()).base_url)) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(5)))
        until(lambda: run.snapshot().completed == 5)
        not_yet = feed.is_done
        feed.put(make_calls(make_bodies(5), first=6))
        feed.end_input()
        answers = collect_results(feed)

    assert (not_yet, len(answers)) == (False, 10)


def test_queue_without_calls_is_done_when_its_input_ends(make_dispatcher: Callable) -> None:
    with open_session(make_dispatcher("http://127.0.0.1:9")) as run, run.open_queue(0) as feed:
        feed.put([])
        feed.end_input()

        assert feed.is_done


def test_large_calls_are_sent_one_at_a_time_under_the_byte_limit(
    serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: reply(after_s=0.005))
    dispatcher = make_dispatcher(server.base_url, max_request_bytes_in_flight=1_500)

    answers = call_all(dispatcher, [{"model": "m", "user": "x" * 1_000}] * 20)

    assert [answer.code for answer in answers] == [None] * 20
    assert server.most_at_once == 1


def test_closed_queue_sends_and_counts_nothing_more(serve: Callable, make_dispatcher: Callable) -> None:
    script = {0: error_reply(429, retry_after="1"), 1: silence()}
    server = serve(lambda request: script.get(request.number, reply()))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=2, min_in_flight=2)

    with open_session(dispatcher) as run:
        with run.open_queue(0) as dropped:
            dropped.put(make_calls(make_bodies(2)))
            until(lambda: len(server.received) == 2 and run.snapshot().retried == 1)
        until(lambda: run.snapshot().in_flight == 0)
        with run.open_queue(0) as again:
            again.put(make_calls(make_bodies(2)))
            again.end_input()
            answers = collect_results(again)
        time.sleep(1.2)  # the retry of the closed feed would be due
        progress = run.snapshot()

    assert [answer.code for answer in answers] == [None, None]
    assert len(server.received) == 4
    assert (progress.completed, progress.failed) == (2, 0)


# Nothing is lost


FAULTS = {
    "ok": reply(),
    "slow": reply(after_s=0.02),
    "chunks": chunked([json.dumps(COMPLETION).encode()]),
    "429": error_reply(429, retry_after="0"),
    "429_soon": error_reply(429, retry_after_ms="20"),
    "500": error_reply(500),
    "503": error_reply(503),
    "400": error_reply(400),
    "302": error_reply(302, location="/elsewhere"),
    "closed": raw(b""),
    "reset": raw(b"", reset=True),
    "cut_off": cut_off(b'{"choices"'),
    "html": reply(200, b"<html>"),
    "silence": silence(),
}


@pytest.mark.system
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=12),
    blocks=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    max_in_flight=st.integers(1, 8),
)
def test_every_call_gets_exactly_one_result(
    faults: list[str], blocks: list[int], max_in_flight: int, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda request: FAULTS[faults[request.number % len(faults)]])
    dispatcher = make_dispatcher(
        server.base_url, max_in_flight=max_in_flight, max_attempts=3, first_byte_timeout_s=0.15
    )
    run = open_session(dispatcher, deadline=time.time() + 1.0, grace_s=0.2)

    with run, run.open_queue(0) as one, run.open_queue(1) as other:
        first = 1
        for at, size in enumerate(blocks):
            (one, other)[at % 2].put(make_calls(make_bodies(size), first=first))
            first += size
        one.end_input()
        other.end_input()
        answers = collect_results(one, other)
    dispatcher.close()
    server.stop()

    assert [answer.call.line for answer in answers] == list(range(1, sum(blocks) + 1))

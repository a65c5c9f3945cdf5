"""When the next attempt is made, and what an upstream that limits or is down costs."""

import gc
import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from helpers.dispatcher_calls import call_all, make_bodies
from helpers.scripted_server import (
    COMPLETION,
    Action,
    Received,
    ScriptedServer,
    cut_off,
    error_reply,
    raw,
    reply,
    sequence,
    silence,
)

from batchline.upstream.call_results import CallResult
from batchline.upstream.session_progress import SessionProgress


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


WAITS = {
    "429_seconds": (429, lambda: {"retry_after": "1"}),
    "429_a_fraction_of_seconds": (429, lambda: {"retry_after": "0.4"}),
    "429_milliseconds": (429, lambda: {"retry_after_ms": "400"}),
    "429_longest_of_two": (429, lambda: {"retry_after_ms": "400", "retry_after": "0"}),
    "429_spent_budget": (
        429,
        lambda: {"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "400ms"},
    ),
    "429_a_date": (429, lambda: {"retry_after": in_seconds(2)}),
    "503_seconds": (503, lambda: {"retry_after": "1"}),
    "503_a_date": (503, lambda: {"retry_after": in_seconds(2)}),
}
"""The status and the headers of a first answer that asks to wait for 0.4 s or longer."""


@pytest.mark.parametrize("name", WAITS)
def test_second_attempt_waits_for_retry_after(name: str, serve: Callable, make_dispatcher: Callable) -> None:
    status, headers = WAITS[name]
    server = serve(sequence(error_reply(status, **headers()), reply()))

    call_all(make_dispatcher(server.base_url), make_bodies(1))

    first, second = server.received
    assert second.at - first.at > 0.35


UNREADABLE = [
    "soon",
    "",
    "-5",
    "nan",
    "inf",
    "Mon, 32 Foo 2025 00:00:00 GMT",
    "1e400",
    "Sun, 06 Nov 1994 08:49:37 GMT",
]


@pytest.mark.parametrize("value", UNREADABLE)
def test_invalid_retry_after_is_retried_soon(value: str, call_one: Callable) -> None:
    answer = call_one(sequence(error_reply(503, retry_after=value), reply()))

    assert (answer.code, answer.attempts) == (None, 2)


@pytest.mark.parametrize("status", [408, 500, 502])
def test_retry_after_of_other_statuses_is_ignored(status: int, call_one: Callable) -> None:
    script = sequence(error_reply(status, retry_after="3600"), reply())

    answer = call_one(script)

    assert (answer.code, answer.attempts) == (None, 2)


def test_delay_of_more_than_an_hour_is_logged_once_a_minute(
    serve: Callable, make_dispatcher: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda _: error_reply(429, retry_after="86400"))

    call_all(make_dispatcher(server.base_url), make_bodies(5), deadline=time.time() + 5)

    [message] = [record.getMessage() for record in caplog.records if "asks for a delay" in record.getMessage()]
    assert "86400 s (retry-after); trying again after 3600 s" in message


def test_429_delays_unsent_requests(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(sequence(error_reply(429, retry_after="1"), reply()))

    answers = call_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(5))

    assert [answer.code for answer in answers] == [None] * 5
    assert server.received[1].at - server.received[0].at > 0.9


def test_retry_due_after_the_deadline_is_not_scheduled(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: error_reply(429, retry_after="3600"))

    [answer] = call_all(make_dispatcher(server.base_url), make_bodies(1), deadline=time.time() + 600)

    assert (answer.code, answer.status_code, answer.attempts) == ("rate_limited", 429, 1)
    assert len(server.received) == 1


def test_retries_end_at_the_deadline(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: raw(b""))
    dispatcher = make_dispatcher(server.base_url, backoff_base_s=0.2, backoff_cap_s=0.2, max_attempts=100)

    [answer] = call_all(dispatcher, make_bodies(1), deadline=time.time() + 0.5)

    assert answer.code in {"connection_error", "batch_expired"}
    assert answer.attempts == len(server.received)


class ProgressWatch:
    """Observations of a session's snapshots."""

    def __init__(self) -> None:
        self.lowest_limit = 10**9
        self.paused: set[str] = set()

    def __call__(self, progress: SessionProgress) -> None:
        self.lowest_limit = min(self.lowest_limit, progress.limit)
        if progress.paused is not None:
            self.paused.add(progress.paused)


def codes(answers: list[CallResult]) -> set[str | None]:
    return {answer.code for answer in answers}


def storm(act: Action, *, lasting_s: float) -> Callable[[Received], Action]:
    """A script that does this to every second request for so long from the first one on, then answers."""
    times: list[float] = []
    turns = itertools.count()

    def script(request: Received) -> Action:
        times.append(request.at)
        stormy = request.at - times[0] < lasting_s and next(turns) % 2 == 0
        return act if stormy else reply(after_s=0.02)

    return script


@pytest.mark.parametrize("status", [429, 503])
def test_burst_of_push_back_lowers_the_limit_and_fails_no_request(
    status: int, serve: Callable, make_dispatcher: Callable
) -> None:
    dispatcher = make_dispatcher(
        serve(storm(error_reply(status), lasting_s=0.6)).base_url, max_in_flight=32, max_attempts=20
    )
    watch = ProgressWatch()

    answers = call_all(dispatcher, make_bodies(400), watch=watch)

    assert codes(answers) == {None}
    assert watch.lowest_limit < 32


def test_timeout_lowers_the_limit(serve: Callable, make_dispatcher: Callable) -> None:
    script = sequence(silence(), reply(after_s=0.1))
    dispatcher = make_dispatcher(serve(script).base_url, max_in_flight=8, first_byte_timeout_s=0.5)
    watch = ProgressWatch()

    answers = call_all(dispatcher, make_bodies(8), watch=watch)

    assert codes(answers) == {None}
    assert watch.lowest_limit < 8


def test_limit_does_not_fall_below_its_floor(serve: Callable, make_dispatcher: Callable) -> None:
    script = sequence(*[error_reply(429, retry_after="0")] * 8, reply(after_s=0.1))
    dispatcher = make_dispatcher(serve(script).base_url, max_in_flight=8, min_in_flight=6)
    watch = ProgressWatch()

    call_all(dispatcher, make_bodies(30), watch=watch)

    assert watch.lowest_limit == 6


@pytest.mark.parametrize("status", [429, 503])
def test_rare_push_back_neither_lowers_the_limit_nor_delays_others(
    status: int, serve: Callable, make_dispatcher: Callable
) -> None:
    stray = error_reply(status, retry_after="0.3")
    server = serve(lambda request: stray if request.number % 50 == 49 else reply(after_s=0.02))
    watch = ProgressWatch()

    answers = call_all(make_dispatcher(server.base_url, max_in_flight=32), make_bodies(1_000), watch=watch)

    times = [request.at for request in server.received]
    refused_at = times[49:900:50]
    assert codes(answers) == {None}
    assert watch.lowest_limit >= 30
    assert all(any(at < other < at + 0.25 for other in times) for at in refused_at)


def test_many_retries_due_at_once_log_no_error(
    serve: Callable, make_dispatcher: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda request: reply() if request.number % 2 else error_reply(429, retry_after="0"))

    call_all(make_dispatcher(server.base_url, max_in_flight=32, max_attempts=100), make_bodies(200))
    gc.collect()  # asyncio tells of a coroutine that died when it is collected

    assert [record.getMessage()[:80] for record in caplog.records if record.levelname == "ERROR"] == []


def test_limit_recovers_after_successes(serve: Callable, make_dispatcher: Callable) -> None:
    script = sequence(error_reply(429, retry_after="0"), reply(after_s=0.05))
    dispatcher = make_dispatcher(serve(script).base_url, max_in_flight=10)
    seen: list[int] = []

    call_all(dispatcher, make_bodies(60), watch=lambda progress: seen.append(progress.limit))

    assert min(seen) < seen[-1] == 10


SLOW_DOWN = {"error": {"message": "Slow down: try again in 10ms.", "code": "rate_limit_exceeded"}}


@pytest.mark.parametrize(
    "limited",
    [reply(429, SLOW_DOWN), reply(200, SLOW_DOWN)],
    ids=["429", "in a 200"],
)
def test_429_uses_up_no_attempts(limited: Action, call_one: Callable) -> None:
    script = sequence(*[limited] * 12, error_reply(500), limited, reply())

    answer = call_one(script, max_attempts=2)

    assert (answer.code, answer.attempts) == (None, 15)
    assert answer.retries == (*["rate_limited"] * 12, "server_error", "rate_limited")


INSIDE_200 = {
    "503": ({"message": "no", "code": 503}, "server_error", 5),
    "overloaded": ({"message": "no", "type": "overloaded_error"}, "server_error", 5),
    "timeout": ({"message": "no", "code": "timeout"}, "timeout", 5),
    "400": ({"message": "no", "code": 400}, "invalid_request", 1),
    "model_not_found": ({"message": "no", "code": "model_not_found"}, "invalid_request", 1),
    "403": ({"message": "no", "code": 403}, "invalid_request", 1),
    "silent": ({"message": "no"}, "invalid_response", 2),
}
"""From an error inside a 200 to its code and the number of attempts that it is worth."""


@pytest.mark.parametrize("name", INSIDE_200)
def test_error_inside_a_200_is_tried_again_as_its_own_status(name: str, call_one: Callable) -> None:
    error, code, attempts = INSIDE_200[name]

    answer = call_one(lambda _: reply(200, {"error": error}), max_attempts=5)

    assert (answer.code, answer.status_code, answer.attempts) == (code, 200, attempts)


def test_wrong_reply_and_transient_failures_have_attempts_of_their_own(call_one: Callable) -> None:
    empty = reply(200, {"choices": []})

    answer = call_one(sequence(error_reply(500), empty, error_reply(500), empty, reply()))

    assert (answer.code, answer.attempts) == ("empty_response", 4)


# An upstream that is down


def test_503_inside_a_200_is_no_outage(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(200, {"error": {"message": "busy", "code": 503}}))
    watch = ProgressWatch()

    answers = call_all(make_dispatcher(server.base_url, max_attempts=2), make_bodies(60), watch=watch)

    assert codes(answers) == {"server_error"}
    assert not any("is down" in why for why in watch.paused)


@pytest.fixture
def run_later() -> Callable[[float, Callable[[], object]], None]:
    """Do something after so many seconds, beside the test; it is waited for."""
    timers: list[threading.Timer] = []

    def start(after_s: float, do: Callable[[], object]) -> None:
        timers.append(threading.Timer(after_s, do))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join(10)


def test_upstream_that_starts_late_fails_no_request(make_dispatcher: Callable, run_later: Callable) -> None:
    server = ScriptedServer(lambda _: reply()).reserve_port()
    run_later(0.9, server.start)
    watch = ProgressWatch()

    answers = call_all(make_dispatcher(server.base_url, max_attempts=2), make_bodies(200), watch=watch)
    server.stop()

    assert codes(answers) == {None}
    assert any("is down" in why for why in watch.paused)


@pytest.mark.system
def test_upstream_restarted_midway_fails_no_request(
    serve: Callable, make_dispatcher: Callable, run_later: Callable
) -> None:
    server = serve(lambda _: reply(after_s=0.02))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=8, max_attempts=3)
    run_later(0.5, server.stop)
    run_later(2.0, server.start)
    watch = ProgressWatch()

    answers = call_all(dispatcher, make_bodies(600), watch=watch)

    assert codes(answers) == {None}
    assert any("is down" in why for why in watch.paused)


OUTAGES = {
    "502": error_reply(502),
    "503": error_reply(503),
    "504": error_reply(504),
    "resets": raw(b"", reset=True),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_outage_behind_a_proxy_fails_no_request(name: str, serve: Callable, make_dispatcher: Callable) -> None:
    comes_back_at = time.monotonic() + 0.9
    server = serve(lambda request: reply() if request.at > comes_back_at else OUTAGES[name])
    watch = ProgressWatch()

    answers = call_all(
        make_dispatcher(server.base_url, max_in_flight=16, max_attempts=4), make_bodies(100), watch=watch
    )

    assert codes(answers) == {None}
    assert any("is down" in why for why in watch.paused)


@pytest.mark.parametrize(
    ("act", "code"),
    [(raw(b""), "connection_error"), (cut_off(b"{"), "connection_error"), (error_reply(504), "server_error")],
    ids=["closes without a word", "closes within the body", "says 504"],
)
def test_requests_that_always_fail_exhaust_their_attempts(
    act: Action, code: str, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda request: act if int(request.prompt) % 4 == 0 else reply())

    answers = call_all(make_dispatcher(server.base_url, max_attempts=2), make_bodies(36), timeout_s=10)

    assert [answer.code for answer in answers] == [code, None, None, None] * 9
    assert {answer.attempts for answer in answers if answer.code} == {2}


def test_upstream_that_is_down_gets_only_probes(make_dispatcher: Callable, serve: Callable) -> None:
    came_back_at = time.monotonic() + 0.9
    server = serve(lambda request: reply() if request.at > came_back_at else error_reply(503))

    call_all(make_dispatcher(server.base_url, max_in_flight=16, max_attempts=4), make_bodies(200))

    in_vain = sum(request.at <= came_back_at for request in server.received)
    assert in_vain < 100


def test_requests_held_by_an_outage_expire_at_the_deadline(make_dispatcher: Callable) -> None:
    nowhere = ScriptedServer(lambda _: reply()).reserve_port()

    answers = call_all(make_dispatcher(nowhere.base_url), make_bodies(50), deadline=time.time() + 0.9)

    assert len(answers) == 50
    assert codes(answers) <= {"batch_expired", "connection_error"}


# Rates


def received_in(server: ScriptedServer, seconds: float) -> int:
    first = server.received[0].at
    return sum(request.at - first <= seconds for request in server.received)


@pytest.mark.system
def test_retries_count_against_the_rate_limit(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: reply() if request.number % 2 else error_reply(500))
    dispatcher = make_dispatcher(server.base_url, requests_per_minute=600, max_attempts=50)

    answers = call_all(dispatcher, make_bodies(15))

    assert codes(answers) == {None}
    assert received_in(server, 1.0) <= 10 + 10 + 2


@pytest.mark.system
def test_reported_tokens_count_against_the_rate_limit(serve: Callable, make_dispatcher: Callable) -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 100}
    server = serve(lambda _: reply(200, COMPLETION | {"usage": usage}))
    dispatcher = make_dispatcher(server.base_url, tokens_per_minute=60_000, max_in_flight=1)

    answers = call_all(dispatcher, make_bodies(30))

    assert codes(answers) == {None}
    assert received_in(server, 1.0) <= 10 + 10 + 2


def test_request_above_the_token_limit_is_sent(serve: Callable, make_dispatcher: Callable) -> None:
    dispatcher = make_dispatcher(serve(lambda _: reply()).base_url, tokens_per_minute=60)

    [answer] = call_all(dispatcher, [{"model": "m", "user": "x" * 10_000}])

    assert answer.code is None

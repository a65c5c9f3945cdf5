"""Limits that pause a batch or stop it: identical failures, refused keys and exhausted quotas."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from helpers.dispatcher_calls import collect_results, make_bodies, make_calls, open_session
from helpers.scripted_server import Action, Received, cut_off, error_reply, reply

from batchline.models.options import BatchOptions
from batchline.upstream.call_results import CallResult
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.session_progress import SessionProgress
from batchline.upstream.stop_reason import StopReason

MAX_IDENTICAL = 25
IN_FLIGHT = 4
DEFAULTS, STOPS = BatchOptions(), BatchOptions(on_limit="stop")


class Ended(NamedTuple):
    """The end of a session: its settled calls, the reason for an early stop, and its counts."""

    answers: list[CallResult]
    stop: StopReason | None
    progress: SessionProgress

    @property
    def codes(self) -> Counter[str | None]:
        return Counter(answer.code for answer in self.answers)


def send_all(dispatcher: Dispatcher, bodies: Sequence[dict], options: BatchOptions = DEFAULTS) -> Ended:
    with open_session(dispatcher, options=options) as session, session.open_queue(0) as queue:
        queue.put(make_calls(bodies))
        queue.end_input()
        answers = collect_results(queue)
        return Ended(answers, session.stop_reason, session.snapshot())


def error_in_200(**members: object) -> Action:
    return reply(200, {"error": {"message": "no", **members}})


# Identical failures


def test_identical_failures_pause_the_batch(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: reply(404, {"error": {"message": f"no model; request {request.number}"}}))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT), make_bodies(500))

    assert ended.stop is not None
    assert (ended.stop.limit, ended.stop.code, ended.stop.is_pause) == ("identical_failures", None, True)
    assert "25 requests of m in a row" in ended.stop.message
    assert "no model" in ended.stop.message
    assert "check the upstream's base_url" in ended.stop.message
    assert MAX_IDENTICAL <= len(server.received) < MAX_IDENTICAL + IN_FLIGHT
    assert ended.codes == {"invalid_request": len(server.received)}


def test_identical_failures_stop_the_batch_if_its_options_say_so(
    serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: error_reply(400))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT), make_bodies(500), STOPS)

    assert ended.stop is not None
    assert (ended.stop.limit, ended.stop.code, ended.stop.is_pause) == (
        "identical_failures",
        "batch_cancelled",
        False,
    )
    failed = len(server.received)
    assert failed < MAX_IDENTICAL + IN_FLIGHT
    assert ended.codes == {"invalid_request": failed, "batch_cancelled": 500 - failed}
    assert {answer.message for answer in ended.answers if answer.code == "batch_cancelled"} == {ended.stop.message}
    assert ended.progress.failed == failed


def test_limit_of_identical_failures_is_an_option(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: error_reply(400))
    options = BatchOptions(max_identical_failures=3)

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(50), options)

    assert len(server.received) == 3
    assert ended.stop is not None


def test_success_resets_the_count_of_identical_failures(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(400) if (request.number + 1) % MAX_IDENTICAL else reply())

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(100))

    assert ended.stop is None
    assert ended.codes == {"invalid_request": 96, None: 4}


def test_identical_failures_after_a_success_pause_the_batch(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(400) if request.number else reply())

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(100))

    assert ended.stop is not None
    assert ended.codes == {None: 1, "invalid_request": MAX_IDENTICAL}


@pytest.mark.parametrize(
    "other", [error_reply(422), reply(400, {"error": {"message": "another"}})], ids=["status", "message"]
)
def test_failures_of_different_kinds_are_not_identical(
    other: Action, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda request: other if request.number % 20 == 19 else error_reply(400))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(100))

    assert (ended.stop, ended.codes) == (None, {"invalid_request": 100})


def test_identical_failures_are_counted_for_each_model(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(400) if b'"bad"' in request.body else reply())
    bodies = [{"model": "bad" if number % 2 else "good", "user": str(number)} for number in range(200)]

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), bodies)

    assert ended.stop is not None
    assert "of bad in a row" in ended.stop.message
    assert ended.codes == {None: MAX_IDENTICAL, "invalid_request": MAX_IDENTICAL}


TRANSIENT = {
    "says_500": error_reply(500),
    "says_409": error_reply(409),
    "answers_nothing": reply(200, {"choices": []}),
    "answers_html": reply(200, b"<html>Welcome</html>"),
    "says_500_in_a_200": error_in_200(code=500),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_failures_worth_a_retry_count_before_the_first_success(
    name: str, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: TRANSIENT[name])
    slow = {"backoff_base_s": 3_600, "backoff_cap_s": 3_600}

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT, **slow), make_bodies(500))

    assert ended.stop is not None
    assert ended.stop.limit == "identical_failures"
    assert len({request.prompt for request in server.received}) < MAX_IDENTICAL + IN_FLIGHT
    assert (ended.codes, ended.progress.failed) == ({}, 0), "their further attempts are left to the next runner"


def test_failures_that_a_retry_cures_are_not_counted_after_a_success(
    serve: Callable, make_dispatcher: Callable
) -> None:
    seen: Counter[str] = Counter()

    def script(request: Received) -> Action:
        seen[request.prompt] += 1
        is_first = seen[request.prompt] == 1 and request.prompt != "0"
        return error_reply(500) if is_first else reply()

    ended = send_all(make_dispatcher(serve(script).base_url, max_in_flight=1), make_bodies(100))

    assert (ended.stop, ended.codes) == (None, {None: 100})


OWN_FAULTS = {
    "content_filter": reply(400, {"error": {"message": "no", "code": "content_filter"}}),
    "context_length_exceeded": reply(400, {"error": {"message": "no", "code": "context_length_exceeded"}}),
    "truncated": reply(200, {"choices": [{"message": {"content": "Ye"}, "finish_reason": "length"}]}),
}


@pytest.mark.parametrize("code", OWN_FAULTS)
def test_failures_of_the_requests_own_are_not_counted(
    code: str, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: OWN_FAULTS[code])
    options = BatchOptions(on_truncated="fail", max_identical_failures=5)

    ended = send_all(make_dispatcher(server.base_url), make_bodies(60), options)

    assert (ended.stop, ended.codes) == (None, {code: 60})
    assert len(server.received) == 60


def test_rate_limits_are_not_counted(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(429, retry_after="0") if request.number < 60 else reply())
    options = BatchOptions(max_identical_failures=5)

    ended = send_all(make_dispatcher(server.base_url, max_attempts=1), make_bodies(40), options)

    assert (ended.stop, ended.codes) == (None, {None: 40})


WITHOUT_REPLY = {
    "answers_too_much": reply(200, b"x" * 3_000),
    "breaks_off": cut_off(b"{"),
}


@pytest.mark.parametrize("name", WITHOUT_REPLY)
def test_attempts_without_a_complete_reply_count_as_identical_failures(
    name: str, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda _: WITHOUT_REPLY[name])
    quick = {"max_attempts": 2, "max_response_bytes": 2_000, "first_byte_timeout_s": 0.2}

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT, **quick), make_bodies(100))

    assert ended.stop is not None
    assert ended.stop.limit == "identical_failures"
    assert len({request.prompt for request in server.received}) < MAX_IDENTICAL + IN_FLIGHT


# Keys and quotas


REFUSALS = {
    "401": (error_reply(401), "unauthorized"),
    "401_in_a_200": (error_in_200(code="invalid_api_key"), "unauthorized"),
    "402": (error_reply(402), "quota"),
    "quota_as_429": (reply(429, {"error": {"message": "no", "code": "insufficient_quota"}}), "quota"),
    "billing_as_403": (reply(403, {"error": {"message": "This API method requires billing"}}), "quota"),
    "quota_in_a_200": (error_in_200(code="insufficient_quota"), "quota"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_of_the_whole_account_pauses_at_once_and_fails_nothing(
    name: str, serve: Callable, make_dispatcher: Callable
) -> None:
    act, limit = REFUSALS[name]
    server = serve(lambda _: act)

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT), make_bodies(100))

    assert ended.stop is not None
    assert (ended.stop.limit, ended.stop.code) == (limit, None)
    assert (ended.answers, ended.progress.failed) == ([], 0)
    assert len(server.received) <= IN_FLIGHT


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_of_the_whole_account_stops_the_batch_if_its_options_say_so(
    name: str, serve: Callable, make_dispatcher: Callable
) -> None:
    act, limit = REFUSALS[name]
    server = serve(lambda _: act)

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT), make_bodies(100), STOPS)

    assert ended.stop is not None
    assert (ended.stop.limit, ended.stop.code) == (limit, "batch_cancelled")
    assert (ended.codes, ended.progress.failed) == ({"batch_cancelled": 100}, 0)


def test_refusal_after_successes_keeps_these(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: reply() if request.number < 10 else error_reply(402))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(100))

    assert ended.stop is not None
    assert ended.codes == {None: 10}
    assert len(server.received) == 11


def test_reason_of_a_refusal_names_upstream_and_setting_but_not_the_key(
    serve: Callable, make_dispatcher: Callable
) -> None:
    echo = {"error": {"message": "Incorrect API key provided: sk-very-secret."}}
    dispatcher = make_dispatcher(serve(lambda _: reply(401, echo)).base_url, api_key="sk-very-secret")

    stop = send_all(dispatcher, make_bodies(5)).stop

    assert stop is not None
    assert "upstream default answers 401: Incorrect API key provided: ***." in stop.message
    assert "check the upstream's api_key" in stop.message


def test_lone_403_fails_its_line(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(403) if request.number % 3 else reply())

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(60))

    assert (ended.stop, ended.codes) == (None, {None: 20, "invalid_request": 40})


@pytest.mark.parametrize("number_of_successes", [0, 5])
def test_403_for_three_requests_in_a_row_pauses(
    number_of_successes: int, serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(lambda request: reply() if request.number < number_of_successes else error_reply(403))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(60))

    assert ended.stop is not None
    assert (ended.stop.limit, ended.stop.code) == ("unauthorized", None)
    assert len(server.received) == number_of_successes + 3
    assert ended.codes[None] == number_of_successes
    assert ended.codes["invalid_request"] <= 3


def test_other_failures_between_403s_are_no_successes(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: error_reply(400) if request.number % 2 else error_reply(403))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(20))

    assert ended.stop is not None
    assert ended.stop.limit == "unauthorized"
    assert len(server.received) == 5


def test_requests_in_flight_at_a_pause_are_answered(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda request: reply(after_s=0.3) if request.number < 3 else error_reply(401))

    ended = send_all(make_dispatcher(server.base_url, max_in_flight=IN_FLIGHT), make_bodies(50))

    assert ended.stop is not None
    assert ended.codes == {None: 3}

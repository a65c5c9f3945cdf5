"""Error codes of each kind of failure, and the number of attempts."""

import gzip
import json
import socket
import time
from collections.abc import Callable

import pytest
from helpers.dispatcher_calls import call_all, make_bodies
from helpers.scripted_server import (
    COMPLETION,
    Received,
    chunked,
    cut_off,
    dawdle,
    drip,
    error_reply,
    raw,
    reply,
    reply_and,
    sequence,
    silence,
)
from helpers.transport_calls import send_directly

from batchline.models.upstreams import Upstream
from batchline.upstream.call_results import CallResult
from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport
from batchline.upstream.transports.base import TransportFactory
from batchline.upstream.transports.httpx import through_httpx
from batchline.upstream.transports.pyreqwest import PyreqwestTransport

TRANSPORTS = {"plain": AsyncioHttpTransport, "pyreqwest": PyreqwestTransport, "httpx": through_httpx()}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> TransportFactory:
    """Every transport classifies alike."""
    return TRANSPORTS[request.param]


WHOLE = json.dumps(COMPLETION).encode()

BROKEN = {
    "closes_without_a_word": (raw(b""), "connection_error"),
    "resets": (raw(b"", reset=True), "connection_error"),
    "closes_within_the_head": (raw(b"HTTP/1.1 200 OK\r\ncontent-le"), "connection_error"),
    "closes_within_the_body": (cut_off(b'{"id": "a"'), "connection_error"),
    "closes_after_json_shorter_than_announced": (cut_off(WHOLE), "connection_error"),
    "leaves_chunks_unfinished": (chunked([WHOLE], ended=False), "connection_error"),
    "sends_a_chunk_size_that_is_no_number": (
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" + WHOLE),
        "connection_error",
    ),
    "speaks_no_http": (raw(b"\x00\xffSSH-2.0-nonsense\r\n\r\n"), "connection_error"),
    "has_a_head_of_megabytes": (raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500_000), "connection_error"),
    "never_answers": (silence(), "timeout"),
    "falls_silent_within_the_body": (drip(b" ", every_s=3600), "timeout"),
    "never_ends_its_head": (dawdle(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", every_s=0.1), "timeout"),
    "drips": (drip(b" ", every_s=0.05), "timeout"),
    "says_500": (error_reply(500), "server_error"),
    "says_502": (error_reply(502), "server_error"),
    "says_503": (error_reply(503), "server_error"),
    "says_504": (error_reply(504), "server_error"),
    "says_529": (error_reply(529), "server_error"),
    "says_408": (error_reply(408), "timeout"),
    "says_425": (error_reply(425), "server_error"),
    "says_409": (error_reply(409), "invalid_request"),
    "says_503_in_a_200": (reply(200, {"error": {"message": "busy", "code": 503}}), "server_error"),
}
"""From what a server does to the code; all of these are tried again until the attempts are used up."""

WRONG = {
    "answers_in_html": (reply(200, b"<html>Welcome</html>"), "invalid_response"),
    "answers_json_cut_short": (reply(200, WHOLE[:-1]), "invalid_response"),
    "answers_200_with_an_error": (reply(200, {"error": {"message": "no"}}), "invalid_response"),
    "answers_nothing": (reply(200, b""), "empty_response"),
    "answers_no_choices": (reply(200, {"id": "a", "choices": []}), "empty_response"),
}
"""Complete replies that are wrong, which are tried once more."""

FINAL = {
    "answers_too_much": (reply(200, {"choices": ["x" * 5000]}), "invalid_response"),
    "answers_too_much_in_chunks": (chunked([b" " * 600] * 4), "invalid_response"),
    "answers_without_end": (drip(b" " * 600, every_s=0.01), "invalid_response"),
    "answers_204": (raw(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"), "empty_response"),
    "redirects": (error_reply(302, location="http://127.0.0.1:1/"), "invalid_response"),
    "says_not_modified": (raw(b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n"), "invalid_response"),
    "filters": (reply(400, {"error": {"message": "no", "code": "content_filter"}}), "content_filter"),
    "filters_in_a_200": (reply(200, {"choices": [{"finish_reason": "content_filter"}]}), "content_filter"),
    "finds_the_prompt_too_long": (
        reply(400, {"error": {"message": "no", "code": "context_length_exceeded"}}),
        "context_length_exceeded",
    ),
}
"""Replies that would be the same for the next attempt."""

LIMITED = {"says_429": (error_reply(429, retry_after="0"), "rate_limited")}

REFUSED = [400, 403, 404, 405, 410, 413, 415, 422, 431, 451]

TIMEOUTS = {"never_answers", "falls_silent_within_the_body", "drips", "never_ends_its_head"}


def options_for(name: str) -> dict[str, object]:
    """Three attempts, of little patience where it is the patience that ends them."""
    patience = {"first_byte_timeout_s": 0.4, "total_timeout_s": 0.6} if name in TIMEOUTS else {}
    return {"max_attempts": 3, "max_response_bytes": 2000, **patience}


@pytest.mark.parametrize("name", BROKEN)
def test_persistent_failure_gets_its_code_after_the_last_attempt(name: str, call_one: Callable) -> None:
    act, code = BROKEN[name]

    answer = call_one(lambda _: act, **options_for(name))

    assert (answer.code, answer.attempts, answer.retries) == (code, 3, (code, code))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_reply_gets_its_code_after_the_second_attempt(name: str, call_one: Callable) -> None:
    act, code = WRONG[name]

    answer = call_one(lambda _: act, **options_for(name) | {"max_attempts": 8})

    assert (answer.code, answer.attempts, answer.retries) == (code, 2, (code,))


@pytest.mark.parametrize("name", FINAL)
def test_failure_that_would_repeat_gets_its_code_after_one_attempt(name: str, call_one: Callable) -> None:
    act, code = FINAL[name]

    answer = call_one(lambda _: act, **options_for(name))

    assert (answer.code, answer.attempts, answer.retries) == (code, 1, ())


@pytest.mark.parametrize("name", BROKEN | WRONG | LIMITED)
def test_failure_that_passes_succeeds_on_second_attempt(name: str, call_one: Callable) -> None:
    act, code = (BROKEN | WRONG | LIMITED)[name]

    answer = call_one(sequence(act, reply()), **options_for(name))

    assert (answer.code, answer.attempts, answer.retries) == (None, 2, (code,))


@pytest.mark.parametrize("status", REFUSED)
def test_rejected_request_is_sent_once(status: int, call_one: Callable) -> None:
    answer = call_one(lambda _: error_reply(status))

    assert (answer.code, answer.status_code, answer.attempts) == ("invalid_request", status, 1)


def test_every_attempt_the_server_saw_is_counted(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(sequence(error_reply(500), cut_off(b"{"), error_reply(429, retry_after="0"), reply()))

    [answer] = call_all(make_dispatcher(server.base_url), make_bodies(1))

    assert answer.attempts == len(server.received) == 4
    assert answer.retries == ("server_error", "connection_error", "rate_limited")


def test_error_result_keeps_body_status_message_and_request_id(call_one: Callable) -> None:
    answer = call_one(lambda _: error_reply(400, x_request_id="req-7"))

    assert (answer.status_code, answer.request_id, answer.message) == (400, "req-7", "told 400")
    assert json.loads(answer.body)["error"]["type"] == "scripted"


def test_headers_of_an_error_that_say_where_and_when_to_try_again_are_kept(
    serve: Callable, transport: TransportFactory
) -> None:
    headers = [
        ("Retry-After", "1"),
        ("X-RateLimit-Reset-Tokens", "2s"),
        ("retry-after", "3"),
        ("anthropic-ratelimit-requests-reset", "soon"),
        ("Location", "/elsewhere"),
        ("server", "nginx"),
    ]
    server = serve(lambda request: reply(429 if request.number else 200, headers=headers))

    success, error = send_directly(transport, Upstream(base_url=server.base_url), b"{}", b"{}")

    assert success.headers == ()
    assert sorted(error.headers) == [
        ("anthropic-ratelimit-requests-reset", "soon"),
        ("location", "/elsewhere"),
        ("retry-after", "1"),
        ("retry-after", "3"),
        ("x-ratelimit-reset-tokens", "2s"),
    ]


def test_result_without_reply_has_no_status_or_body(call_one: Callable) -> None:
    answer = call_one(lambda _: raw(b""), max_attempts=1)

    assert (answer.status_code, answer.body, answer.request_id, answer.usage) == (None, None, None, None)


def test_tokens_of_failed_attempt_count_as_wasted(call_one: Callable) -> None:
    failed = reply(500, {"error": {"message": "late"}, "usage": {"prompt_tokens": 9, "completion_tokens": 2}})

    answer = call_one(sequence(failed, reply()))

    assert (answer.wasted_tokens, answer.usage.total_tokens) == (11, 7)


def test_refused_connection_is_connection_error(make_dispatcher: Callable) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dispatcher = make_dispatcher(f"http://127.0.0.1:{taken.getsockname()[1]}", max_attempts=1)

        [answer] = call_all(dispatcher, make_bodies(1), deadline=time.time() + 0.5)

    assert set(answer.retries) == {"connection_error"}


def test_unresolvable_host_is_connection_error(make_dispatcher: Callable) -> None:
    dispatcher = make_dispatcher("http://nowhere.invalid", max_attempts=1)

    [answer] = call_all(dispatcher, make_bodies(1), deadline=time.time() + 1.0)

    assert set(answer.retries) == {"connection_error"}


def test_connection_never_accepted_is_timeout(make_dispatcher: Callable) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)

        dispatcher = make_dispatcher(f"http://127.0.0.1:{address[1]}", max_attempts=1, connect_timeout_s=0.3)
        [answer] = call_all(dispatcher, make_bodies(1), deadline=time.time() + 1.0)
        for filler in fillers:
            filler.close()

    assert set(answer.retries) == {"timeout"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_does_not_send_the_key_to_another_host(status: int, serve: Callable, call_one: Callable) -> None:
    stranger = serve(lambda _: reply())

    answer = call_one(
        lambda _: error_reply(status, location=stranger.base_url + "/v1/chat/completions"),
        api_key="sk-secret",
        max_attempts=2,
    )

    assert (answer.code, answer.status_code) == ("invalid_response", status)
    assert stranger.received == []


def test_message_of_a_redirect_does_not_reveal_the_key(call_one: Callable) -> None:
    answer = call_one(
        lambda _: error_reply(302, location="https://other.example/v1?key=sk-very-secret"),
        api_key="sk-very-secret",
    )

    assert "sk-very-secret" not in everything_told(answer)


def test_chunked_reply_is_read_completely(call_one: Callable) -> None:
    answer = call_one(lambda _: chunked([WHOLE[:5], WHOLE[5:]]))

    assert (answer.code, answer.body) == (None, WHOLE)


PACKED = gzip.compress(json.dumps({"choices": ["x" * 1_000_000]}).encode())


def test_compressed_reply_over_size_limit_is_invalid_response(call_one: Callable) -> None:
    packed = reply(200, PACKED, headers=[("content-encoding", "gzip")])

    answer = call_one(lambda _: packed, max_response_bytes=len(PACKED) + 1000, max_attempts=1)

    assert answer.code == "invalid_response"


def test_informational_reply_is_skipped(call_one: Callable) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)

    answer = call_one(lambda _: raw(early + head + WHOLE))

    assert (answer.code, answer.body) == (None, WHOLE)


def test_reply_ended_by_connection_close_is_read(call_one: Callable) -> None:
    answer = call_one(lambda _: raw(b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE))

    assert (answer.code, answer.body) == (None, WHOLE)


def test_bytes_after_reply_are_not_read_as_the_next_reply(
    serve: Callable, make_dispatcher: Callable, transport: TransportFactory, request: pytest.FixtureRequest
) -> None:
    if transport is TRANSPORTS["httpx"]:
        reason = "httpx takes what a server sent unasked for the answer to its next request"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    smuggled = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"forged":true}'
    server = serve(lambda _: reply_and(smuggled))

    answers = call_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(10))

    assert [answer for answer in answers if b"forged" in (answer.body or b"")] == []


HEADER_OF_SECOND = b"x-request-id: second\r\nretry-after: 3600\r\n"
FOLLOWERS = {
    "another answer": b"HTTP/1.1 200 OK\r\n%bcontent-length: 15\r\n\r\n{'forged':true}" % HEADER_OF_SECOND,
    "an informational answer": b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % HEADER_OF_SECOND,
    "a very long answer": b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n{",
    "half a head": b"HTTP/1.1 200 O",
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_bytes_after_reply_in_one_segment_do_not_change_it(name: str, call_one: Callable) -> None:
    first = b"HTTP/1.1 400 Bad Request\r\nx-request-id: first\r\ncontent-length: 2\r\n\r\n{}"

    answer = call_one(lambda _: raw(first + FOLLOWERS[name], closes=False))

    assert (answer.code, answer.status_code, answer.body) == ("invalid_request", 400, b"{}")
    assert answer.request_id == "first"


def test_reply_of_exactly_the_size_limit_succeeds(call_one: Callable) -> None:
    answer = call_one(lambda _: reply(200, WHOLE), max_response_bytes=len(WHOLE))

    assert (answer.code, answer.body) == (None, WHOLE)


# The request as the server sees it


def test_request_sends_accept_encoding(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply())

    call_all(make_dispatcher(server.base_url), make_bodies(1))

    assert server.received[0].headers["accept-encoding"]


def sent(
    serve: Callable,
    make_dispatcher: Callable,
    *,
    path: str = "/v1/chat/completions",
    answer: object = COMPLETION,
    **options: object,
) -> Received:
    server = serve(lambda _: reply(200, answer))
    call_all(make_dispatcher(server.base_url, **options), make_bodies(1), endpoint=path)
    [request] = server.received
    return request


def test_request_is_a_post_of_the_body_to_the_endpoint(serve: Callable, make_dispatcher: Callable) -> None:
    request = sent(serve, make_dispatcher)

    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.body == b'{"model": "m", "user": "0"}'
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("batchline")


def test_request_without_key_has_no_authorization(serve: Callable, make_dispatcher: Callable) -> None:
    headers = sent(serve, make_dispatcher).headers

    assert not {"authorization", "x-api-key"} & set(headers)


def test_key_is_sent_as_bearer_token(serve: Callable, make_dispatcher: Callable) -> None:
    headers = sent(serve, make_dispatcher, api_key="sk-secret").headers

    assert (headers["authorization"], headers.get("x-api-key")) == ("Bearer sk-secret", None)


def test_messages_endpoint_sends_anthropic_headers(serve: Callable, make_dispatcher: Callable) -> None:
    message = {"content": [{"type": "text", "text": "Yes."}], "stop_reason": "end_turn"}

    headers = sent(serve, make_dispatcher, path="/v1/messages", answer=message, api_key="sk-secret").headers

    assert (headers["x-api-key"], headers.get("authorization")) == ("sk-secret", None)
    assert headers["anthropic-version"] == "2023-06-01"


def test_upstream_headers_override_default_headers(serve: Callable, make_dispatcher: Callable) -> None:
    own = {"X-Team": "blue", "Authorization": "Basic abc", "User-Agent": "mine"}

    headers = sent(serve, make_dispatcher, api_key="sk-secret", headers=own).headers

    assert (headers["x-team"], headers["authorization"], headers["user-agent"]) == ("blue", "Basic abc", "mine")


def test_base_url_ending_in_v1_is_joined_without_duplicate_v1(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply())

    call_all(make_dispatcher(server.base_url + "/v1"), make_bodies(1))

    assert server.received[0].path == "/v1/chat/completions"


def everything_told(answer: CallResult) -> str:
    return f"{answer.message} {answer.retries} {answer.status_code} {answer.request_id}"


@pytest.mark.parametrize("name", BROKEN | WRONG | FINAL)
def test_failures_reveal_neither_key_nor_prompt(name: str, call_one: Callable, caplog: object) -> None:
    act, _ = (BROKEN | WRONG | FINAL)[name]

    answer = call_one(
        lambda _: act, **options_for(name) | {"max_attempts": 1}, api_key="sk-secret", headers={"x-own": "hush"}
    )

    told = everything_told(answer) + caplog.text
    assert not [secret for secret in ("sk-secret", "hush", '"user"') if secret in told]


def test_result_times_are_consistent(call_one: Callable) -> None:
    before = time.time()

    answer = call_one(lambda _: reply(after_s=0.05))

    assert before <= answer.started_at <= time.time()
    assert 0.05 <= answer.ttfb_s <= answer.duration_s

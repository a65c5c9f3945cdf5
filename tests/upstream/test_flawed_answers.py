"""Answers that were cut off or do not fit the requested schema, by the options of their batch."""

import json
from collections.abc import Callable

import pytest
from helpers.dispatcher_calls import call_all, make_bodies
from helpers.scripted_server import Action, Received, reply, sequence

from batchline.models.options import BatchOptions
from batchline.upstream.call_results import CallResult

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
REQUEST = {
    "model": "m",
    "user": "0",
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
}
EMPTY = reply(200, {"choices": []})


def says(content: str, reason: str = "stop") -> Action:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return reply(200, {"choices": [choice], "usage": usage})


FITS, MISFITS, CUT = says('{"age": 7}'), says('{"age": "seven"}'), says('{"age": ', "length")


@pytest.fixture
def ask(serve: Callable, make_dispatcher: Callable) -> Callable[..., CallResult]:
    """Return the answer to one request with a schema."""

    def send(script: Callable[[Received], Action], **options: str) -> CallResult:
        dispatcher = make_dispatcher(serve(script).base_url)
        [answer] = call_all(dispatcher, [REQUEST], batch_options=BatchOptions(**options))
        return answer

    return send


def test_answer_has_its_finish_reason_and_no_mark(ask: Callable) -> None:
    answer = ask(lambda _: FITS)

    assert (answer.code, answer.finish_reason, answer.mark, answer.message) == (None, "stop", None, None)


def test_truncated_answer_is_kept_with_a_mark(ask: Callable) -> None:
    answer = ask(lambda _: CUT)

    assert (answer.code, answer.finish_reason, answer.mark, answer.attempts) == (None, "length", "truncated", 1)
    assert (answer.usage.total_tokens, answer.wasted_tokens) == (7, 0)


def test_truncated_answer_fails_if_the_options_say_so(ask: Callable) -> None:
    answer = ask(lambda _: CUT, on_truncated="fail", on_invalid_output="retry")

    assert (answer.code, answer.finish_reason, answer.mark, answer.attempts) == ("truncated", "length", None, 1)
    assert "finish reason 'length'" in answer.message
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == '{"age": '
    assert (answer.usage, answer.wasted_tokens) == (None, 7)


def test_invalid_output_is_kept_with_a_mark(ask: Callable) -> None:
    answer = ask(lambda _: MISFITS)

    assert (answer.code, answer.mark, answer.attempts) == (None, "invalid_output", 1)
    assert "age" in answer.message
    assert answer.usage.total_tokens == 7


def test_invalid_output_fails_if_the_options_say_so(ask: Callable) -> None:
    answer = ask(lambda _: MISFITS, on_invalid_output="fail")

    assert (answer.code, answer.mark, answer.attempts) == ("invalid_output", None, 1)
    assert "age" in answer.message
    assert (answer.usage, answer.wasted_tokens) == (None, 7)


def test_invalid_output_is_tried_once_more_if_the_options_say_so(ask: Callable) -> None:
    answer = ask(lambda _: MISFITS, on_invalid_output="retry")

    assert (answer.code, answer.attempts, answer.retries) == ("invalid_output", 2, ("invalid_output",))
    assert answer.wasted_tokens == 14


def test_second_answer_that_fits_is_a_success(ask: Callable) -> None:
    answer = ask(sequence(MISFITS, FITS), on_invalid_output="retry")

    assert (answer.code, answer.mark, answer.attempts, answer.retries) == (None, None, 2, ("invalid_output",))
    assert (answer.usage.total_tokens, answer.wasted_tokens) == (7, 7)


@pytest.mark.parametrize(
    ("acts", "code"),
    [((EMPTY, MISFITS), "invalid_output"), ((MISFITS, EMPTY), "empty_response")],
    ids=["empty first", "invalid first"],
)
def test_whole_and_wrong_answers_cost_two_calls_whatever_is_wrong(
    acts: tuple[Action, ...], code: str, ask: Callable
) -> None:
    answer = ask(sequence(*acts, FITS), on_invalid_output="retry")

    assert (answer.code, answer.attempts) == (code, 2)


def test_long_answer_is_checked_as_well(ask: Callable) -> None:
    padding = " " * 300_000

    kept = ask(lambda _: says(f'{{"age": {padding} 7}}'))
    marked = ask(lambda _: says(f'{{"age": {padding} "seven"}}'))

    assert (kept.mark, marked.mark) == (None, "invalid_output")


def test_answer_without_requested_schema_is_not_checked(serve: Callable, make_dispatcher: Callable) -> None:
    dispatcher = make_dispatcher(serve(lambda _: MISFITS).base_url)

    [answer] = call_all(dispatcher, make_bodies(1), batch_options=BatchOptions(on_invalid_output="fail"))

    assert (answer.code, answer.mark) == (None, None)


# Upstreams that answer oddly


@pytest.mark.parametrize("body", [{"ok": True}, {"choices": []}, [], {"text": "Yes."}], ids=str)
def test_any_json_is_a_success_if_the_upstream_says_so(body: object, call_one: Callable) -> None:
    answer = call_one(lambda _: reply(200, body), answers="any")

    assert (answer.code, answer.attempts, json.loads(answer.body)) == (None, 1, body)


def test_error_and_page_stay_failures_if_any_json_is_a_success(call_one: Callable) -> None:
    error = call_one(lambda _: reply(200, {"error": {"message": "no", "code": 400}}), answers="any")
    page = call_one(lambda _: reply(200, b"<html>Welcome</html>"), answers="any")

    assert (error.code, error.attempts) == ("invalid_request", 1)
    assert (page.code, page.attempts) == ("invalid_response", 2)

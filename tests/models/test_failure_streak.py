"""Streaks of requests that fail in the same way."""

import pytest

from batchline.models.error_codes import ErrorCode
from batchline.models.failure_streak import FailureStreak, failure_kind, hint

NOT_FOUND = failure_kind(404, ErrorCode.INVALID_REQUEST, "model not found")
LATE = failure_kind(500, ErrorCode.SERVER_ERROR, "late")


def report(streak: FailureStreak, requests: range, kind=NOT_FOUND) -> list[bool]:
    return [streak.on_failure(request, kind) for request in requests]


def test_streak_is_over_at_the_limit_and_says_so_once():
    assert report(FailureStreak(3), range(5)) == [False, False, True, False, False]


def test_success_ends_the_streak():
    streak = FailureStreak(3)
    report(streak, range(2))
    streak.on_success()
    assert report(streak, range(2, 5)) == [False, False, True]


def test_failure_of_another_kind_begins_a_new_streak():
    streak = FailureStreak(3)
    report(streak, range(2))
    assert report(streak, range(2, 4), LATE) == [False, False]
    assert (streak.length, streak.kind) == (2, LATE)


def test_same_request_counts_once():
    assert report(FailureStreak(2), range(1)) + report(FailureStreak(2), range(1)) == [False, False]
    streak = FailureStreak(2)
    assert [streak.on_failure("a", NOT_FOUND), streak.on_failure("a", NOT_FOUND)] == [False, False]


def test_limit_of_one_stops_at_the_first_failure():
    assert report(FailureStreak(1), range(2)) == [True, False]


@pytest.mark.parametrize(
    "code",
    [
        "content_filter",
        "context_length_exceeded",
        "truncated",
        "invalid_output",
        "batch_expired",
        "batch_cancelled",
        "batch_failed",
    ],
)
def test_failures_of_the_request_itself_neither_count_nor_end_a_streak(code):
    streak = FailureStreak(2)
    streak.on_failure(1, NOT_FOUND)
    assert not streak.on_failure(2, failure_kind(400, ErrorCode(code), "x"))
    assert streak.on_failure(3, NOT_FOUND)


SAME = (
    (
        "Rate limit reached in organization org-A1b2 on requests: 5",
        "Rate limit reached in organization org-C3d4 on requests: 7",
    ),
    ("request req_0a1b failed after 3.5 s", "request req_9f8e failed after 12 s"),
    ("no answer from 10.0.0.1:8000/v1", "no answer from 10.0.0.2:8000/v1"),
)


def test_ids_and_numbers_make_no_other_kind():
    for first, second in SAME:
        kinds = {failure_kind(400, ErrorCode.INVALID_REQUEST, text) for text in (first, second)}
        assert len(kinds) == 1, first


def test_status_code_and_words_make_another_kind():
    kinds = {
        failure_kind(400, ErrorCode.INVALID_REQUEST, "bad temperature"),
        failure_kind(400, ErrorCode.INVALID_REQUEST, "bad top_p"),
        failure_kind(422, ErrorCode.INVALID_REQUEST, "bad top_p"),
        failure_kind(400, ErrorCode.RATE_LIMITED, "bad top_p"),
        failure_kind(None, ErrorCode.CONNECTION_ERROR, None),
    }
    assert len(kinds) == 5


HINTS = (
    (404, 'model "llama3.2" not found, try pulling it first', "run `ollama pull llama3.2` on the server"),
    (
        400,
        "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "write max_completion_tokens instead of max_tokens in the requests",
    ),
    (
        400,
        "Unsupported value: 'temperature' does not support 0 with this model.",
        "leave temperature out of the requests",
    ),
    (404, "The model `x` does not exist.", "check the model's name in the requests"),
    (404, "404 page not found", "check the upstream's base_url"),
    (401, "no", "check the upstream's api_key"),
    (524, None, "set stream = true on the upstream, so that no proxy waits for the whole answer"),
    (400, "bad request", None),
    (None, None, None),
)


def test_hint_says_what_to_do():
    for status, message, expected in HINTS:
        assert hint(status, message, "llama3.2") == expected, message

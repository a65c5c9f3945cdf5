"""Which failures are tried again, for every status and every code."""

import pytest

from batchline.models.error_codes import (
    AUTH_FAILURE_STATUSES,
    BATCH_END_CODES,
    ErrorCode,
    code_for_status,
    is_retryable,
)

RETRIED = {408, 409, 425, 429, *range(500, 600)}


def test_a_2xx_is_no_failure():
    assert {code_for_status(status_code) for status_code in range(200, 300)} == {None}


def test_what_is_neither_answer_nor_refusal_is_an_invalid_response_and_tried_again():
    for status_code in (*range(100, 200), *range(300, 400)):
        code = code_for_status(status_code)
        assert (code, is_retryable(code, status_code)) == ("invalid_response", True), status_code


def test_an_error_status_is_tried_again_if_it_may_pass():
    statuses = range(400, 600)
    assert {each for each in statuses if is_retryable(code_for_status(each), each)} == RETRIED


def test_a_4xx_that_stays_is_an_invalid_request():
    assert {code_for_status(status_code) for status_code in set(range(400, 500)) - RETRIED} == {"invalid_request"}


def test_a_5xx_is_a_server_error():
    assert {code_for_status(status_code) for status_code in range(500, 600)} == {"server_error"}


@pytest.mark.parametrize(
    "code", ["rate_limited", "timeout", "connection_error", "invalid_response", "server_error"]
)
def test_a_failure_of_the_moment_is_tried_again_with_or_without_an_answer(code):
    assert is_retryable(ErrorCode(code), None)


@pytest.mark.parametrize("code", sorted(BATCH_END_CODES))
def test_what_the_batchs_end_settled_is_not_tried_again(code):
    assert not is_retryable(code, None)


def test_every_code_is_one_of_the_contracts():
    assert {str(code) for code in ErrorCode} == {
        "invalid_request",
        "rate_limited",
        "server_error",
        "timeout",
        "connection_error",
        "invalid_response",
        "batch_expired",
        "batch_cancelled",
        "batch_failed",
    }


def test_too_many_requests_is_rate_limited():
    assert code_for_status(429) == "rate_limited"


def test_refusals_of_the_key_are_not_tried_again():
    assert not any(
        is_retryable(code_for_status(status_code), status_code) for status_code in AUTH_FAILURE_STATUSES
    )

"""Retries of failures, for every status and every code."""

import pytest

from batchline.models.error_codes import (
    BATCH_END_CODES,
    ErrorCode,
    code_for_status,
    is_retryable,
)

RETRIED = {408, 409, 425, 429, *range(500, 600)}


def test_status_2xx_has_no_error_code():
    assert {code_for_status(status_code) for status_code in range(200, 300)} == {None}


def test_status_1xx_and_3xx_are_retryable_invalid_responses():
    for status_code in (*range(100, 200), *range(300, 400)):
        code = code_for_status(status_code)
        assert (code, is_retryable(code, status_code)) == ("invalid_response", True), status_code


def test_only_transient_error_statuses_are_retryable():
    statuses = range(400, 600)
    assert {each for each in statuses if is_retryable(code_for_status(each), each)} == RETRIED


def test_permanent_4xx_is_invalid_request():
    assert {code_for_status(status_code) for status_code in set(range(400, 500)) - RETRIED} == {"invalid_request"}


def test_status_5xx_is_server_error():
    assert {code_for_status(status_code) for status_code in range(500, 600)} == {"server_error"}


@pytest.mark.parametrize(
    "code", ["rate_limited", "timeout", "connection_error", "invalid_response", "server_error"]
)
def test_transient_error_code_without_status_is_retryable(code):
    assert is_retryable(ErrorCode(code), None)


@pytest.mark.parametrize("code", sorted(BATCH_END_CODES))
def test_error_code_of_unsent_request_is_not_retryable(code):
    assert not is_retryable(code, None)


def test_error_codes_match_contract():
    assert {str(code) for code in ErrorCode} == {
        "invalid_request",
        "rate_limited",
        "server_error",
        "timeout",
        "connection_error",
        "invalid_response",
        "empty_response",
        "content_filter",
        "context_length_exceeded",
        "truncated",
        "invalid_output",
        "batch_expired",
        "batch_cancelled",
        "batch_failed",
    }


def test_status_429_is_rate_limited():
    assert code_for_status(429) == "rate_limited"


def test_auth_error_statuses_are_not_retryable():
    assert not any(is_retryable(code_for_status(status_code), status_code) for status_code in (401, 403))

"""Retries of failures, for every status and every code."""

from batchline.models.error_codes import (
    ErrorCode,
    code_for_status,
)

RETRIED = {408, 409, 425, 429, *range(500, 600)}


def test_status_2xx_has_no_error_code():
    assert {code_for_status(status_code) for status_code in range(200, 300)} == {None}


def test_status_1xx_and_3xx_are_invalid_responses():
    statuses = (*range(100, 200), *range(300, 400))
    assert {code_for_status(status_code) for status_code in statuses} == {"invalid_response"}


def test_permanent_4xx_is_invalid_request():
    assert {code_for_status(status_code) for status_code in set(range(400, 500)) - RETRIED} == {"invalid_request"}


def test_status_5xx_is_server_error():
    assert {code_for_status(status_code) for status_code in range(500, 600)} == {"server_error"}


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

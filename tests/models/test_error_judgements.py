"""Judgements of errors by status, words and phrases."""

import pytest

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import RetryClass, judge_error, retry_class_of_failure, status_of_words

TOO_LONG = (
    "This model's maximum context length is 8192 tokens, however you requested 9000 tokens",
    "The decoder prompt (length 5000) is longer than the maximum model length of 2048.",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
    "the request exceeds the available context size, try increasing it",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048.",
    "Your input exceeds the context window of this model.",
)
NOT_TOO_LONG = (
    "max_tokens is too large: 9000. This model supports at most 4096 completion tokens.",
    "Invalid 'messages[0].content': string too long.",
    "context is a required property",
    "Request Entity Too Large",
)
NO_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details.",
    "Your credit balance is too low to access the Anthropic API.",
    "You have reached your specified API usage limits.",
    "Insufficient credits. Add more.",
    "Sorry, your account balance is insufficient",
    "Budget has been exceeded! Current cost: 11, Max budget: 10",
    "Key limit exceeded (total limit).",
    "Your team has either used all available credits or reached its monthly spending limit.",
    "This API method requires billing to be enabled.",
)
NOT_QUOTA = (
    "Rate limit reached for gpt-4.1 in organization org-1 on tokens per min (TPM): Limit 30000, Used 29000.",
    "Rate limit reached. Please add a payment method at example.com/account/billing to increase your limit.",
    "This request would exceed your organization's rate limit of 50 requests per minute.",
    "billing_address is not a valid field",
)


def test_phrases_of_a_prompt_that_is_too_long():
    for status in (400, 413, 422, None):
        assert {judge_error(status, frozenset(), text).code for text in TOO_LONG} == {"context_length_exceeded"}, (
            status
        )
    for status in (403, 404, 429, 500):
        codes = {judge_error(status, frozenset(), text).code for text in TOO_LONG}
        assert "context_length_exceeded" not in codes, status
    for text in NOT_TOO_LONG:
        assert judge_error(400, frozenset(), text).code == "invalid_request", text


def test_phrases_of_an_exhausted_quota():
    for status in (400, 403, 429, None):
        for text in NO_QUOTA:
            assert judge_error(status, frozenset(), text).out_reason == "quota", (status, text)
    for text in NOT_QUOTA:
        assert judge_error(429, frozenset(), text).retry == "as_status", text
        assert judge_error(400, frozenset(), text).retry == "never", text


def test_5xx_stays_one_whatever_it_says():
    for text in (*TOO_LONG, *NO_QUOTA):
        assert judge_error(500, frozenset({"insufficient_quota", "content_filter"}), text).code == "server_error"


def test_highest_status_of_several_words_counts():
    assert status_of_words({"invalid_request_error", "rate_limit_exceeded"}) == 429
    assert status_of_words({"strange"}) is None


@pytest.mark.parametrize("code", ["timeout", "connection_error"])
def test_broken_connection_is_tried_again(code):
    assert retry_class_of_failure(ErrorCode(code)) is RetryClass.AS_STATUS


def test_reply_that_cannot_be_read_is_never_tried_again():
    assert retry_class_of_failure(ErrorCode.INVALID_RESPONSE) is RetryClass.NEVER

"""Judges replies: error code, retry class and mark, from a status and the words that the server uses.

Everything here is pure. `upstream/dialects/` reads these words from replies. The words and phrases are those of
public documentation: OpenAI, Azure OpenAI, Anthropic, Gemini (google.rpc.Code), OpenRouter, DeepSeek, Mistral,
vLLM, llama.cpp, Ollama, TGI, LiteLLM.
"""

from collections.abc import Set
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from batchline.models.error_codes import RETRYABLE_STATUSES, ErrorCode, code_for_status
from batchline.models.options import OnInvalidOutput, OnTruncated
from batchline.models.usage import Usage


class Mark(StrEnum):
    """A flaw of a successful answer."""

    TRUNCATED = "truncated"
    INVALID_OUTPUT = "invalid_output"


class RetryClass(StrEnum):
    """The number of attempts that a failure is worth."""

    AS_STATUS = "as_status"
    """Transient: retried with backoff, up to the upstream's `max_attempts`."""

    ONCE = "once"
    """A complete reply that is wrong: a second one may be right, a third one is unlikely to be."""

    NEVER = "never"
    """Deterministic: the same request gets the same reply."""

    UPSTREAM_OUT = "upstream_out"
    """Not the request's fault: the upstream is taken out and the request stays pending."""


class OutReason(StrEnum):
    """The reason to take an upstream out; also the code of a pause."""

    QUOTA = "quota"
    UNAUTHORIZED = "unauthorized"


class ErrorVerdict(NamedTuple):
    """The judgement of an error.

    `acts_as` is the HTTP status that the error stands for, None if it names none. `out_reason` is set for
    `UPSTREAM_OUT`, and for a 403, which only takes the upstream out if several different requests get it.
    """

    code: ErrorCode
    retry: RetryClass
    acts_as: int | None = None
    out_reason: OutReason | None = None


class Judgement(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The judgement of a complete reply; `code` is None for a success, whose `retry` is None too.

    `body` is JSON text on one line. `acts_as` is the status that a failure stands for: the HTTP status, or the one
    that an error inside a 2xx names. `finish_reason` and `model` are the server's own words. The `message` of a
    success says why it has its mark.
    """

    body: bytes
    code: ErrorCode | None = None
    message: str | None = None
    retry: RetryClass | None = None
    acts_as: int | None = None
    out_reason: OutReason | None = None
    finish_reason: str | None = None
    mark: Mark | None = None
    usage: Usage | None = None
    model: str | None = None


FILTER_REASONS: Final = frozenset(
    {
        "content_filter",
        "refusal",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
        "image_safety",
        "image_prohibited_content",
        "image_recitation",
        "guardrail_intervened",
        "content_filtered",
        "sensitive",
    }
)
"""Finish reasons of a content filter, in lower case; Gemini sends its own in upper case."""

TRUNCATION_REASONS: Final = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "model_length",
        "model_context_window_exceeded",
    }
)
"""Finish reasons of an answer that was cut off, in lower case."""

ERROR_REASONS: Final = frozenset(
    {"error", "abort", "network_error", "malformed_function_call", "insufficient_system_resource"}
)
"""Finish reasons of an answer that broke off because of an error, in lower case."""

_STATUS_WORDS: Final = {
    "invalid_request_error": 400,
    "bad_request": 400,
    "bad_request_error": 400,
    "badrequesterror": 400,
    "badrequest": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "out_of_range": 400,
    "validation": 422,
    "invalid_prompt": 400,
    "invalid_value": 400,
    "invalid_type": 400,
    "unsupported_value": 400,
    "unsupported_parameter": 400,
    "missing_required_parameter": 400,
    "invalid_image": 400,
    "authentication_error": 401,
    "authenticationerror": 401,
    "invalid_authentication": 401,
    "unauthenticated": 401,
    "unauthorized": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "permissiondeniederror": 403,
    "forbidden": 403,
    "not_found": 404,
    "not_found_error": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "deploymentnotfound": 404,
    "request_too_large": 413,
    "unprocessable_entity": 422,
    "unprocessableentityerror": 422,
    "timeout": 408,
    "timeout_error": 408,
    "request_timeout": 408,
    "deadline_exceeded": 504,
    "conflict": 409,
    "aborted": 409,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "ratelimiterror": 429,
    "rate_limited": 429,
    "rate_limit": 429,
    "too_many_requests": 429,
    "toomanyrequests": 429,
    "resource_exhausted": 429,
    "throttled": 429,
    "throttling_error": 429,
    "throttlingexception": 429,
    "overloaded": 503,
    "overloaded_error": 503,
    "engine_overloaded": 503,
    "unavailable": 503,
    "unavailable_error": 503,
    "service_unavailable": 503,
    "serviceunavailableerror": 503,
    "server_overloaded": 503,
    "slow_down": 503,
    "server_error": 500,
    "internal": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
    "api_error": 500,
    "vector_store_timeout": 504,
    "incomplete_generation": 500,
    "not_supported_error": 501,
    "not_implemented": 501,
    "notimplementederror": 501,
    "unimplemented": 501,
}
"""HTTP status that the word in an error's `code`, `type` or `status` stands for; words in lower case."""

_FILTER_WORDS: Final = frozenset(
    {
        "content_filter",
        "content_filter_error",
        "content_policy_violation",
        "contentpolicyviolationerror",
        "responsibleaipolicyviolation",
        "data_inspection_failed",
        "datainspectionfailed",
        "moderation_blocked",
        "bio_policy",
        "cyber_policy",
        "image_content_policy_violation",
    }
)
_QUOTA_WORDS: Final = frozenset(
    {
        "insufficient_quota",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_disabled",
        "budget_exceeded",
        "insufficient_credits",
        "insufficient_balance",
        "insufficient_user_quota",
        "payment_required",
        "exceeded_current_quota_error",
        "quota_exhausted",
        "arrearage",
    }
)
_KEY_WORDS: Final = frozenset({"invalid_api_key", "api_key_invalid", "invalid_key", "account_deactivated"})
_CONTEXT_WORDS: Final = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "contextwindowexceedederror",
        "context_window_exceeded",
        "max_context_length_exceeded",
    }
)
# Plain texts, searched in lower case: an expression with all of them takes a hundred times as long.
_CONTEXT_PHRASES: Final = (
    "maximum context length",
    "maximum model length",
    "max_model_len",
    "prompt is too long",
    "input is too long",
    "prompt contains too many tokens",
    "exceeds the maximum number of tokens",
    "exceeds the maximum number of input tokens",
    "`inputs` must have less than",
    "`inputs` tokens + `max_new_tokens` must be",
)
_CONTEXT_NAMES: Final = ("context length", "context window", "context limit", "context size")
_CONTEXT_VERBS: Final = ("exceed", "too long", "too large", "too many", "too small", "er than", "beyond", "reduce")
_QUOTA_PHRASES: Final = (
    "exceeded your current quota",
    "insufficient quota",
    "insufficient credit",
    "insufficient balance",
    "balance is insufficient",
    "insufficient funds",
    "credit balance is too low",
    "out of credits",
    "budget has been exceeded",
    "key limit exceeded",
    "payment required",
    "requires billing",
    "billing to be enabled",
    "billing is not",
    "billing has not",
)
_QUOTA_NAMES: Final = (
    "spend limit",
    "spending limit",
    "billing limit",
    "billing hard limit",
    "credit limit",
    "budget limit",
    "usage limit",
)
_QUOTA_VERBS: Final = ("reach", "exceed", "hit")
_KEY_PHRASES: Final = ("api key not valid", "api key is not valid", "invalid api key", "incorrect api key")
_MAX_PHRASE_CHARACTERS: Final = 2_000
_CONTEXT_STATUSES: Final = frozenset({None, 400, 413, 422})
_QUOTA_STATUSES: Final = frozenset({None, 400, 403, 429})


def judge_error(status: int | None, words: Set[str], message: str | None) -> ErrorVerdict:
    """Return the judgement of an error: an HTTP status that is not a 2xx, or an error inside a 2xx.

    `status` is None if an error inside a 2xx names none. `words` are what the error says in its codes and types,
    in lower case, and only refine a client error: a 5xx stays one, whatever it says.
    """
    if status is None or 400 <= status < 500:
        text = (message or "")[:_MAX_PHRASE_CHARACTERS].lower()
        if (failure := _judge_by_words(status, words, text)) is not None:
            return failure
    if status is None:
        return ErrorVerdict(ErrorCode.INVALID_RESPONSE, RetryClass.ONCE)
    return _judge_status(status)


def status_of_words(words: Set[str]) -> int | None:
    """Return the HTTP status that the words of an error stand for, the highest if several; None if none does."""
    return max((_STATUS_WORDS[word] for word in words if word in _STATUS_WORDS), default=None)


def _judge_by_words(status: int | None, words: Set[str], text: str) -> ErrorVerdict | None:
    """Return the judgement of a client error that says more than its status, or None."""
    if not words.isdisjoint(_FILTER_WORDS):
        return ErrorVerdict(ErrorCode.CONTENT_FILTER, RetryClass.NEVER, status or 400)
    if status in _CONTEXT_STATUSES and (not words.isdisjoint(_CONTEXT_WORDS) or _says_context(text)):
        return ErrorVerdict(ErrorCode.CONTEXT_LENGTH_EXCEEDED, RetryClass.NEVER, status or 400)
    if _says_quota(status, words, text):
        acts_as = status or 402
        return ErrorVerdict(
            ErrorCode.RATE_LIMITED if acts_as == 429 else ErrorCode.INVALID_REQUEST,
            RetryClass.UPSTREAM_OUT,
            acts_as,
            OutReason.QUOTA,
        )
    if (
        status == 401
        or not words.isdisjoint(_KEY_WORDS)
        or (status in {None, 400} and _has_any(text, _KEY_PHRASES))
    ):
        return ErrorVerdict(
            ErrorCode.INVALID_REQUEST, RetryClass.UPSTREAM_OUT, status or 401, OutReason.UNAUTHORIZED
        )
    return None


def _says_quota(status: int | None, words: Set[str], text: str) -> bool:
    if status == 402 or not words.isdisjoint(_QUOTA_WORDS):
        return True
    # Gemini words its limits per minute like an exhausted quota, but names the status RESOURCE_EXHAUSTED.
    if status not in _QUOTA_STATUSES or (status == 429 and "resource_exhausted" in words):
        return False
    return _has_any(text, _QUOTA_PHRASES) or (_has_any(text, _QUOTA_NAMES) and _has_any(text, _QUOTA_VERBS))


def _says_context(text: str) -> bool:
    return _has_any(text, _CONTEXT_PHRASES) or (_has_any(text, _CONTEXT_NAMES) and _has_any(text, _CONTEXT_VERBS))


def _has_any(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)


def _judge_status(status: int) -> ErrorVerdict:
    """Return the judgement of an HTTP status that is not a 2xx."""
    code = code_for_status(status) or ErrorCode.INVALID_RESPONSE
    if status in RETRYABLE_STATUSES or status >= 500:
        return ErrorVerdict(code, RetryClass.AS_STATUS, status)
    return ErrorVerdict(code, RetryClass.NEVER, status, OutReason.UNAUTHORIZED if status == 403 else None)


def apply_output_rules(
    judgement: Judgement,
    violation: str | None,
    *,
    on_truncated: OnTruncated,
    on_invalid_output: OnInvalidOutput,
    has_retried: bool = False,
) -> Judgement:
    """Return the judgement of a success by the rules of its batch for flawed answers.

    `violation` is the first violation of the schema that the request asked for. It is ignored for a truncated
    answer. A success that is kept in spite of it gets the mark and the message. `has_retried` is True for the
    second answer.
    """
    if judgement.code is not None:
        return judgement
    if judgement.mark is Mark.TRUNCATED:
        if on_truncated == "keep":
            return judgement
        message = f"the answer was cut off by a limit of tokens (finish reason {judgement.finish_reason!r})"
        return structs.replace(
            judgement, code=ErrorCode.TRUNCATED, message=message, retry=RetryClass.NEVER, mark=None
        )
    if violation is None:
        return judgement
    if on_invalid_output == "keep":
        return structs.replace(judgement, mark=Mark.INVALID_OUTPUT, message=violation)
    retry = RetryClass.ONCE if on_invalid_output == "retry" and not has_retried else RetryClass.NEVER
    return structs.replace(judgement, code=ErrorCode.INVALID_OUTPUT, message=violation, retry=retry)


def retry_class_of_failure(code: ErrorCode) -> RetryClass:
    """Return the retry class of an attempt without a complete reply.

    The transports report `INVALID_RESPONSE` for a reply that is too long or in an unknown encoding.
    """
    return RetryClass.NEVER if code is ErrorCode.INVALID_RESPONSE else RetryClass.AS_STATUS

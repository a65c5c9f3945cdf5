"""Calls and their results, and the parsing of replies: JSON, usage and error messages."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, convert, structs

from batchline.models.error_codes import ErrorCode, code_for_status, is_retryable
from batchline.models.json_scan import (
    MAX_DIGITS,
    NotJSONError,
    TooDeepError,
    has_long_number,
    is_too_deep,
    read_members,
    require_json,
)
from batchline.models.lines import to_json_string, to_single_line
from batchline.models.usage import Usage
from batchline.upstream.transports.base import HttpReply

MAX_MESSAGE_CHARACTERS = 500
MAX_INLINE_PARSE_BYTES = 2**18
"""Size of a reply above which it is parsed on a thread, since all requests would wait for it."""

MAX_MESSAGE_BYTES = 2**20
MAX_USAGE_BYTES = 2**14
"""Maximum JSON sizes of an error message and of a usage; longer ones are ignored."""

MAX_TOKENS = 2**53
TokenCount = Annotated[int, Meta(ge=0, lt=MAX_TOKENS)]


class Call(msgspec.Struct, kw_only=True, gc=False):
    """A request to send: an input line's `custom_id` and body as JSON text, and its destination."""

    line: int
    custom_id: Raw
    model: str | None
    path: str
    body: Raw
    upstream: str
    read_at: float = 0.0


class CallResult(msgspec.Struct, kw_only=True, gc=False):
    """The result of a settled call; `code` is None for a success. Durations are in seconds, of the last attempt.

    `body` is JSON text on one line, or None if no reply came. `attempts` counts all that were started; `retries`
    has the error code of each one before the last. `started_at` is in Unix seconds.
    """

    call: Call
    code: ErrorCode | None
    message: str | None = None
    status_code: int | None = None
    body: bytes | None = None
    request_id: str | None = None
    usage: Usage | None = None
    attempts: int = 0
    retries: tuple[ErrorCode, ...] = ()
    started_at: float | None = None
    queued_s: float | None = None
    duration_s: float | None = None
    ttfb_s: float | None = None
    wasted_tokens: int = 0

    @property
    def is_retryable(self) -> bool:
        """True for a failure that another attempt may turn into a success."""
        return self.code is not None and is_retryable(self.code, self.status_code)


class ParsedReply(msgspec.Struct, frozen=True, gc=False):
    """A parsed HTTP reply: its code (None for a success), the body as JSON on one line, and the usage."""

    code: ErrorCode | None
    body: bytes
    message: str | None
    usage: Usage | None


class _TokenDetails(msgspec.Struct, gc=False):
    reasoning_tokens: TokenCount | None = None
    cached_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None


class _RawUsage(msgspec.Struct, gc=False):
    prompt_tokens: TokenCount | None = None
    input_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    total_tokens: TokenCount | None = None
    prompt_tokens_details: _TokenDetails | None = None
    input_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None
    output_tokens_details: _TokenDetails | None = None
    cache_read_input_tokens: TokenCount | None = None
    cache_creation_input_tokens: TokenCount | None = None


class _ReplyEnvelope(msgspec.Struct, gc=False):
    usage: _RawUsage | None = None
    error: Raw = Raw()


_decode_envelope = msgspec.json.Decoder(_ReplyEnvelope).decode
_EMPTY_VALUES = (b"null", b"{}", b'""', b"false")
_MESSAGE_FIELDS = ("message", "detail", "error")
_CONTENT_FIELDS = ("choices", "data", "output", "content", "results")


def parse_reply(reply: HttpReply) -> ParsedReply:
    """Return the parsed reply. Never raises, whatever the server sent.

    The worst body takes a millisecond per 100 kB, so parse long ones on a thread.
    """
    code = code_for_status(reply.status_code)
    if code is None:
        return _parse_success(reply.body)
    body, message = _prepare_error_body(reply.body)
    if message is None:
        message = f"the upstream answered {reply.status_code} with {len(reply.body)} bytes"
    return ParsedReply(code, body, message, _parse_unusual_usage(reply.body))


def redact(secrets: Iterable[bytes], reply: HttpReply, parsed_reply: ParsedReply) -> ParsedReply:
    """Return the parsed reply without the secrets that the upstream may have echoed."""
    body = reply.body
    for secret in secrets:
        body = body.replace(secret, b"***")
    return parsed_reply if body is reply.body else parse_reply(structs.replace(reply, body=body))


def _parse_success(body: bytes) -> ParsedReply:
    """Parse a 2xx body; it becomes a failure if it is not valid JSON or contains only an error."""
    try:
        # msgspec does not check the UTF-8 of values that it skips.
        if not body.isascii():
            body.decode()
        envelope = _decode_envelope(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _parse_unusual_success(body)
    if is_too_deep(body) or has_long_number(body):
        return _reject_unsafe_json(body)
    if envelope.error and _has_only_error(body):
        return _reject_error_body(body)
    usage = envelope.usage
    return ParsedReply(None, to_single_line(body), None, None if usage is None else _normalize_usage(usage))


def _parse_unusual_success(body: bytes) -> ParsedReply:
    """Parse a 2xx body that the fast parser rejects: unusual JSON, or no JSON."""
    try:
        require_json(body)
    except TooDeepError:
        return _reject_unsafe_json(body)
    except NotJSONError as error:
        message = f"the upstream answered 2xx with {len(body)} bytes that are not JSON (at byte {error.offset})"
        return ParsedReply(ErrorCode.INVALID_RESPONSE, to_json_string(body), message, None)
    if has_long_number(body):
        return _reject_unsafe_json(body)
    if _has_only_error(body):
        return _reject_error_body(body)
    return ParsedReply(None, to_single_line(body), None, _parse_unusual_usage(body))


def _reject_unsafe_json(body: bytes) -> ParsedReply:
    """Return a failure for JSON that common parsers cannot read; embedded, it would make the file unreadable."""
    problem = "that are nested too deeply" if is_too_deep(body) else f"with a number of over {MAX_DIGITS:,} digits"
    message = f"the upstream answered 2xx with {len(body)} bytes {problem}"
    return ParsedReply(ErrorCode.INVALID_RESPONSE, to_json_string(body), message, None)


def _has_only_error(body: bytes) -> bool:
    # Some servers send an empty `error` with every success, or an error with partial content: neither is rejected.
    fields = read_members(body, "error", *_CONTENT_FIELDS)
    if fields.get("error", b"null").strip() in _EMPTY_VALUES:
        return False
    return not any(fields.get(field, b"null") != b"null" for field in _CONTENT_FIELDS)


def _reject_error_body(body: bytes) -> ParsedReply:
    embedded_body, message = _prepare_error_body(body)
    return ParsedReply(
        ErrorCode.INVALID_RESPONSE, embedded_body, message or "the upstream answered 2xx with an error", None
    )


def _prepare_error_body(body: bytes) -> tuple[bytes, str | None]:
    """Return the body as JSON on one line, and the error message in it or None."""
    try:
        fields = read_members(body, *_MESSAGE_FIELDS)
    except NotJSONError:
        return to_json_string(body), None
    return to_json_string(body) if has_long_number(body) else to_single_line(body), _find_message(fields)


def _find_message(fields: dict[str, bytes]) -> str | None:
    """Return `error.message`, or the `message`, `detail` or `error` string that some servers send, or None."""
    error_fields = read_members(fields.get("error", b"null"), "message")
    for candidate in (error_fields.get("message"), *map(fields.get, _MESSAGE_FIELDS)):
        message = _decode_string(candidate)
        if message:
            return message[:MAX_MESSAGE_CHARACTERS]
    return None


def _decode_string(text: bytes | None) -> str | None:
    if text is None or not text.startswith(b'"') or len(text) > MAX_MESSAGE_BYTES:
        return None
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return None


def _parse_unusual_usage(body: bytes) -> Usage | None:
    """Return the usage of an unusual reply, from those of its members that are counts."""
    try:
        usage_json = read_members(body, "usage").get("usage")
        return (
            None
            if usage_json is None or len(usage_json) > MAX_USAGE_BYTES
            else _normalize_usage(convert(_keep_counts(msgspec.json.decode(usage_json)), _RawUsage))
        )
    except (NotJSONError, msgspec.MsgspecError, RecursionError):
        return None


def _keep_counts(usage: Any) -> Any:
    """Return the object with only those members that are counts, or objects of counts."""
    if not isinstance(usage, dict):
        return None
    counts = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            counts[name] = _keep_counts(value)
        elif type(value) in {int, float} and value == value // 1 and 0 <= value < MAX_TOKENS:
            counts[name] = int(value)
    return counts


def _normalize_usage(usage: _RawUsage) -> Usage | None:
    """Return OpenAI's or Anthropic's usage in one form, or None if it has no counts.

    OpenAI: `prompt_tokens` and `completion_tokens`, or `input_tokens` and `output_tokens`; cached tokens and
    `cache_write_tokens` are included in the input (API reference, chat completions and responses; prompt caching
    guide). Anthropic: `cache_read_input_tokens` and `cache_creation_input_tokens` are not included in
    `input_tokens`, and are added to them (API reference, messages).
    """
    input_tokens = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    output_tokens = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    total_tokens = usage.total_tokens
    if input_tokens is None and output_tokens is None and total_tokens is None:
        return None
    cache_read_tokens = usage.cache_read_input_tokens or 0
    cache_write_tokens = usage.cache_creation_input_tokens or 0
    prompt_tokens = (input_tokens or 0) + cache_read_tokens + cache_write_tokens
    output_tokens = output_tokens or 0
    input_details = usage.prompt_tokens_details or usage.input_tokens_details
    if input_details is not None:
        cache_read_tokens += input_details.cached_tokens or 0
        cache_write_tokens += input_details.cache_write_tokens or 0
    cached_tokens = min(prompt_tokens, cache_read_tokens)
    output_details = usage.completion_tokens_details or usage.output_tokens_details
    return Usage(
        prompt_tokens,
        output_tokens,
        prompt_tokens + output_tokens if total_tokens is None else total_tokens,
        None if output_details is None else output_details.reasoning_tokens,
        cached_tokens,
        min(prompt_tokens - cached_tokens, cache_write_tokens),
    )

"""What is asked of an upstream and what came of it; reading an answer's usage and its faults."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, convert, structs

from batchline.models.failures import ErrorCode, is_retried, of_status
from batchline.models.json_scan import (
    MAX_DIGITS,
    NotJSONError,
    TooDeepError,
    check,
    has_long_number,
    is_too_deep,
    members,
)
from batchline.models.lines import as_json_text, embeddable
from batchline.upstream.transport import Reply

MESSAGE_CHARACTERS = 500
LONG_BYTES = 2**18
"""Of a reply that is read on a thread, as all others would wait for it."""

MOST_WORDS_BYTES = 2**20
MOST_USAGE_BYTES = 2**14
"""Of a message and a usage that are read; beyond that they are neither."""

MOST_TOKENS = 2**53
Count = Annotated[int, Meta(ge=0, lt=MOST_TOKENS)]


class Call(msgspec.Struct, kw_only=True, gc=False):
    """One request to make: a line of the input, its id's and body's JSON text, and where to send it."""

    line: int
    custom_id: Raw
    model: str | None
    path: str
    body: Raw
    upstream: str
    read_at: float = 0.0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens that an answer reports; `reasoning_tokens` is None where it reports none.

    Of the prompt's, `cached_tokens` were read from the server's cache and `cache_write_tokens` written to it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int | None
    cached_tokens: int
    cache_write_tokens: int = 0


class Answer(msgspec.Struct, kw_only=True, gc=False):
    """How a call was settled; `code` is None for a success. Durations in seconds, of the final attempt.

    `body` is a JSON text on one line, or None where no answer came. `attempts` counts every one that was
    started, `retries` says why each but the last was repeated. `started_at` is in Unix seconds.
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
    def may_be_mended(self) -> bool:
        """True if it is a failure that another attempt may turn into a success."""
        return self.code is not None and is_retried(self.code, self.status_code)


class Reading(msgspec.Struct, frozen=True, gc=False):
    """An HTTP reply understood: its code (None for a success), its body ready to embed, and its usage."""

    code: ErrorCode | None
    body: bytes
    message: str | None
    usage: Usage | None


class _Details(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = None
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = None
    input_tokens: Count | None = None
    completion_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class _Envelope(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    error: Raw = Raw()


_decode = msgspec.json.Decoder(_Envelope).decode
_NULLS = (b"null", b"{}", b'""', b"false")
_WORDS = ("message", "detail", "error")
_ANSWERS = ("choices", "data", "output", "content", "results")


def read_reply(reply: Reply) -> Reading:
    """Return the parsed reply. Never raises, whatever the server sent.

    Takes a millisecond for each 100 kB of the oddest body; a long one is better read on a thread.
    """
    code = of_status(reply.status_code)
    if code is None:
        return _read_success(reply.body)
    body, message = _error_body(reply.body)
    if message is None:
        message = f"the upstream answered {reply.status_code} with {len(reply.body)} bytes"
    return Reading(code, body, message, _usage_of(reply.body))


def reread_without(secrets: Iterable[bytes], reply: Reply, reading: Reading) -> Reading:
    """The reading of a failed call without the secrets that the upstream may have repeated to us."""
    body = reply.body
    for secret in secrets:
        body = body.replace(secret, b"***")
    return reading if body is reply.body else read_reply(structs.replace(reply, body=body))


def _read_success(body: bytes) -> Reading:
    """A 2xx: its JSON, unless it is none or tells of an error."""
    try:
        if not body.isascii():
            body.decode()
        envelope = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _read_odd(body)
    if is_too_deep(body) or has_long_number(body):
        return _unreadable(body)
    if envelope.error and _is_error(body):
        return _invalid(body)
    usage = envelope.usage
    return Reading(None, embeddable(body), None, None if usage is None else _counted(usage))


def _read_odd(body: bytes) -> Reading:
    """A 2xx that the fast parser refuses: odd JSON, or none."""
    try:
        check(body)
    except TooDeepError:
        return _unreadable(body)
    except NotJSONError as error:
        message = f"the upstream answered 2xx with {len(body)} bytes that are not JSON (at byte {error.offset})"
        return Reading(ErrorCode.INVALID_RESPONSE, as_json_text(body), message, None)
    if has_long_number(body):
        return _unreadable(body)
    if _is_error(body):
        return _invalid(body)
    return Reading(None, embeddable(body), None, _usage_of(body))


def _unreadable(body: bytes) -> Reading:
    """The reading of JSON that Python's parser and others fail on; embedded, it would spoil the whole file."""
    fault = "that are nested too deeply" if is_too_deep(body) else f"with a number of over {MAX_DIGITS:,} digits"
    message = f"the upstream answered 2xx with {len(body)} bytes {fault}"
    return Reading(ErrorCode.INVALID_RESPONSE, as_json_text(body), message, None)


def _is_error(body: bytes) -> bool:
    found = members(body, "error", *_ANSWERS)
    if found.get("error", b"null").strip() in _NULLS:
        return False
    return not any(found.get(name, b"null") != b"null" for name in _ANSWERS)


def _invalid(body: bytes) -> Reading:
    text, message = _error_body(body)
    return Reading(ErrorCode.INVALID_RESPONSE, text, message or "the upstream answered 2xx with an error", None)


def _error_body(body: bytes) -> tuple[bytes, str | None]:
    """The body ready to embed, and the message in it if it has one."""
    try:
        found = members(body, *_WORDS)
    except NotJSONError:
        return as_json_text(body), None
    return as_json_text(body) if has_long_number(body) else embeddable(body), _message(found)


def _message(found: dict[str, bytes]) -> str | None:
    """`error.message`, or the `message`, `detail` or `error` text that some servers send."""
    inner = members(found.get("error", b"null"), "message")
    for words in (inner.get("message"), *map(found.get, _WORDS)):
        text = _string(words)
        if text:
            return text[:MESSAGE_CHARACTERS]
    return None


def _string(text: bytes | None) -> str | None:
    if text is None or not text.startswith(b'"') or len(text) > MOST_WORDS_BYTES:
        return None
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return None


def _usage_of(body: bytes) -> Usage | None:
    """The usage of an odd answer: of its members those that count something."""
    try:
        text = members(body, "usage").get("usage")
        return (
            None
            if text is None or len(text) > MOST_USAGE_BYTES
            else _counted(convert(_counts(msgspec.json.decode(text)), _Usage))
        )
    except (NotJSONError, msgspec.MsgspecError, RecursionError):
        return None


def _counts(usage: Any) -> Any:
    """The object without the members that are neither counts nor objects of such."""
    if not isinstance(usage, dict):
        return None
    kept = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            kept[name] = _counts(value)
        elif type(value) in {int, float} and value == value // 1 and 0 <= value < MOST_TOKENS:
            kept[name] = int(value)
    return kept


def _counted(usage: _Usage) -> Usage | None:
    """OpenAI's or Anthropic's usage in one form; none where it counts nothing.

    OpenAI: `prompt_tokens` and `completion_tokens`, or `input_tokens` and `output_tokens`, the cached ones among
    the input, and so `cache_write_tokens` (API reference, chat completions and responses; prompt caching guide).
    Anthropic: `cache_read_input_tokens` and `cache_creation_input_tokens` stand beside `input_tokens` and are
    added to them (API reference, messages).
    """
    prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    completion = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    total = usage.total_tokens
    if prompt is None and completion is None and total is None:
        return None
    read = usage.cache_read_input_tokens or 0
    written = usage.cache_creation_input_tokens or 0
    full_prompt = (prompt or 0) + read + written
    completion = completion or 0
    inside = usage.prompt_tokens_details or usage.input_tokens_details
    if inside is not None:
        read += inside.cached_tokens or 0
        written += inside.cache_write_tokens or 0
    cached = min(full_prompt, read)
    outside = usage.completion_tokens_details or usage.output_tokens_details
    return Usage(
        full_prompt,
        completion,
        full_prompt + completion if total is None else total,
        None if outside is None else outside.reasoning_tokens,
        cached,
        min(full_prompt - cached, written),
    )

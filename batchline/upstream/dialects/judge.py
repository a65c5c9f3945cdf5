"""Judges a complete reply: the one entrance to the tables of the endpoints.

`judge_quickly` decodes an ordinary answer once, in a few microseconds. Whatever it does not know is left to
`judge_fully`, which decodes to Python objects; run that on a thread for long bodies (`MAX_INLINE_BYTES`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from batchline.models.error_codes import ErrorCode
from batchline.models.json_scan import (
    MAX_DIGITS,
    NotJSONError,
    TooDeepError,
    has_long_number,
    is_too_deep,
    read_members,
    require_json,
)
from batchline.models.lines import CR, LF, to_json_string, to_single_line
from batchline.models.outcomes import Judgement, RetryClass, judge_error
from batchline.models.usage import read_usage
from batchline.upstream.dialects import chat, completions, embeddings, messages, moderations, responses, streams
from batchline.upstream.dialects.answers import Answer, model_name
from batchline.upstream.dialects.error_words import (
    MAX_EXCERPT_CHARACTERS,
    NO_WORDS,
    ErrorWords,
    clean_text,
    excerpt,
    find_error,
    has_error,
    read_error,
)
from batchline.upstream.dialects.framing import BLANKS, is_event_stream, remove_framing, split_events

MAX_INLINE_BYTES: Final = 2**16
"""Size of a reply above which `judge_fully` belongs on a thread, since all requests would wait for it."""


class Expectation(NamedTuple):
    """The facts about a request that its reply is judged by.

    `inputs` is the number of inputs of an embeddings request, None if unknown. With `any_answer` (`answers =
    "any"` of the upstream) a 2xx is a success if it is JSON and not only an error object.
    """

    inputs: int | None = None
    any_answer: bool = False


NO_EXPECTATION: Final = Expectation()
ANY_ANSWER: Final = Expectation(any_answer=True)


_EMBEDDINGS: Final = "/v1/embeddings"
_QUICK_READERS: Final[Mapping[str, Callable[[bytes], Judgement | None]]] = {
    "/v1/chat/completions": chat.read_quickly,
    "/v1/completions": completions.read_quickly,
    "/v1/responses": responses.read_quickly,
    "/v1/messages": messages.read_quickly,
    "/v1/moderations": moderations.read_quickly,
}
_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Answer]]] = {
    "/v1/chat/completions": chat.read_answer,
    "/v1/completions": completions.read_answer,
    "/v1/responses": responses.read_answer,
    "/v1/messages": messages.read_answer,
    "/v1/moderations": moderations.read_answer,
}
"""By endpoint; embeddings are read by their number of inputs too."""

_PROXY_TIMEOUTS: Final = frozenset({408, 524})
"""Statuses of proxies that do not wait for an answer that takes long to begin."""

MAX_DECODED_VALUES: Final = 200_000
"""Number of JSON values above which only the members that a judgement reads are decoded, up to that many in all.

Python objects can take a hundred times as much memory as their text.
"""

_JUDGED_MEMBERS: Final = (
    *("object", "type", "status", "code", "message", "msg", "detail", "error", "errors", "metadata"),
    *("reason", "error_type", "error_code", "status_code", "statusCode", "base_resp", "usage", "model"),
    *("choices", "data", "output", "content", "results", "stop_reason", "incomplete_details"),
    *("prompt_feedback", "promptFeedback"),
)
"""The members of a reply that any of the tables reads."""

_CONTENT_MEMBERS: Final = ("choices", "data", "output", "content", "results")
_KINDS: Final = {str: "string", bool: "boolean", list: "list"}


def expectation_of(endpoint: str, request_body: bytes | Raw, *, any_answer: bool = False) -> Expectation:
    """Return what the request says about its reply; only embeddings are read for it."""
    if endpoint == _EMBEDDINGS:
        return Expectation(embeddings.count_inputs(request_body), any_answer)
    return ANY_ANSWER if any_answer else NO_EXPECTATION


def judge(
    endpoint: str,
    status: int,
    body: bytes,
    expectation: Expectation = NO_EXPECTATION,
    *,
    location: str | None = None,
) -> Judgement:
    """Return the judgement of a complete reply. Never raises, whatever the server sent."""
    judgement = judge_quickly(endpoint, status, body, expectation)
    return judge_fully(endpoint, status, body, expectation, location=location) if judgement is None else judgement


def judge_quickly(
    endpoint: str, status: int, body: bytes, expectation: Expectation = NO_EXPECTATION
) -> Judgement | None:
    """Return the judgement of an ordinary 2xx answer, or None if the reply needs `judge_fully`."""
    read_quickly = _QUICK_READERS.get(endpoint)
    if not 200 <= status < 300 or (read_quickly is None and endpoint != _EMBEDDINGS):
        return None
    try:
        # msgspec does not check the UTF-8 of values that it skips.
        if not body.isascii():
            body.decode()
        if read_quickly is not None:
            judgement = read_quickly(body)
        else:
            judgement = embeddings.read_quickly(body, expectation.inputs)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if judgement is None or is_too_deep(body) or has_long_number(body):
        return None
    # Only after decoding: a raw line break inside a string is not JSON.
    return replace(judgement, body=to_single_line(body.strip(BLANKS))) if LF in body or CR in body else judgement


def judge_fully(
    endpoint: str,
    status: int,
    body: bytes,
    expectation: Expectation = NO_EXPECTATION,
    *,
    location: str | None = None,
) -> Judgement:
    """Return the judgement of any reply; a body costs about a millisecond per 100 kB.

    `location` is the address that a redirect names.
    """
    if not 200 <= status < 300:
        return _judge_error_status(status, body, location)
    text = remove_framing(body)
    if is_event_stream(text):
        try:
            text = streams.join_events(endpoint, text)
        except streams.BrokenStream as error:
            return _invalid(body, f"the upstream answered {status} with a stream of events {error}")
    if not text:
        retry = RetryClass.NEVER if status in {204, 205} else RetryClass.ONCE
        return Judgement(
            body=b'""',
            code=ErrorCode.EMPTY_RESPONSE,
            message=f"{status} with an empty body",
            retry=retry,
            acts_as=status,
        )
    try:
        value = _decode_strictly(text)
    except _UnusableJSON as error:
        return _invalid(body, f"the upstream answered {status} with {len(body)} bytes {error}")
    if isinstance(value, dict) and _UNREAD in value.values():
        # What is too long to be looked at is taken for an answer.
        expectation = expectation._replace(any_answer=True)
    return _judge_value(endpoint, status, to_single_line(text), value, expectation)


class _UnusableJSON(Exception):
    """A body that is not JSON, or JSON that common parsers cannot read."""


_UNREAD: Final = "…"
"""The value of a member that is too long to be decoded."""


def _decode_strictly(text: bytes) -> object:
    """Decode JSON with all that RFC 8259 allows, lone surrogates included; raises `_UnusableJSON`.

    Of an object with more than `MAX_DECODED_VALUES` only the judged members are decoded, short ones first.
    """
    try:
        require_json(text)
        if has_long_number(text):
            raise _UnusableJSON(f"with a number of over {MAX_DIGITS:,} digits")
        if _max_values(text) <= MAX_DECODED_VALUES:
            return json.loads(text, parse_constant=_reject_constant)
        return _decode_judged_members(text)
    except (TooDeepError, RecursionError):
        raise _UnusableJSON("that are nested too deeply") from None
    except NotJSONError as error:
        raise _UnusableJSON(f"that are not JSON (at byte {error.offset}): {excerpt(text)}") from None
    except ValueError as error:
        raise _UnusableJSON(f"that are not JSON: {type(error).__name__}") from None


def _decode_judged_members(text: bytes) -> object:
    if not text.startswith(b"{"):
        return [_UNREAD]
    value: dict[str, Any] = {}
    remaining = MAX_DECODED_VALUES
    for name, member in sorted(read_members(text, *_JUDGED_MEMBERS).items(), key=lambda item: len(item[1])):
        remaining -= _max_values(member)
        value[name] = json.loads(member, parse_constant=_reject_constant) if remaining >= 0 else _UNREAD
    return value


def _max_values(text: bytes) -> int:
    """Return an upper bound of the number of values in the JSON text."""
    if len(text) <= MAX_DECODED_VALUES:
        return len(text) // 2 + 1
    return 1 + text.count(b",") + text.count(b"[") + text.count(b"{")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _judge_value(endpoint: str, status: int, body: bytes, value: object, expectation: Expectation) -> Judgement:
    """Return the judgement of a decoded 2xx body."""
    members = value if isinstance(value, dict) else {}
    answer = _read_answer(endpoint, value, expectation)
    usage = read_usage(members.get("usage"))
    judgement = Judgement(
        body=body,
        finish_reason=answer.finish_reason,
        mark=answer.mark,
        usage=embeddings.to_input_usage(usage) if endpoint == _EMBEDDINGS else usage,
        model=model_name(members.get("model")),
    )
    # An answer with a message was cut off before its first word: an error beside it says more.
    may_be_error = answer.code is not None or (answer.message is not None and has_error(members.get("error")))
    if may_be_error and (error := find_error(value)) is not None:
        return _fail_by_error(judgement, status, error)
    if answer.code is None:
        return judgement
    retry = RetryClass.NEVER if answer.code is ErrorCode.CONTENT_FILTER else RetryClass.ONCE
    message = f"the upstream answered {status}, but {answer.message}"
    return replace(judgement, code=answer.code, message=message, retry=retry, acts_as=status)


def _read_answer(endpoint: str, value: object, expectation: Expectation) -> Answer:
    is_known = endpoint in _READERS or endpoint == _EMBEDDINGS
    if not is_known or expectation.any_answer:
        return _read_any_answer(endpoint if is_known else None, value)
    if isinstance(value, dict):
        return _read_object(endpoint, value, expectation.inputs)
    if value is None or value in ([], ""):
        return Answer(ErrorCode.EMPTY_RESPONSE, f"the body is {json.dumps(value)}")
    kind = _KINDS.get(type(value), "number")
    return Answer(ErrorCode.INVALID_RESPONSE, f"the body is a JSON {kind}, not an object")


def _read_object(endpoint: str, members: dict[str, Any], inputs: int | None) -> Answer:
    if endpoint == _EMBEDDINGS:
        return embeddings.read_answer(members, inputs)
    return _READERS[endpoint](members)


def _read_any_answer(endpoint: str | None, value: object) -> Answer:
    """Return the outcome of a body that only has to be JSON and not an error object."""
    members = value if isinstance(value, dict) else {}
    answer = Answer() if endpoint is None or not members else _read_object(endpoint, members, None)
    has_content = any(members.get(name) is not None for name in _CONTENT_MEMBERS)
    if not has_content and find_error(value) is not None:
        return Answer(ErrorCode.INVALID_RESPONSE, "it is an error", answer.finish_reason)
    return answer if answer.code is None else Answer(finish_reason=answer.finish_reason)


def _fail_by_error(judgement: Judgement, status: int, error: ErrorWords) -> Judgement:
    """Return the judgement of a 2xx that is an error, by the error's own words."""
    failure = judge_error(error.status, error.words, error.message)
    message = error.message or f"the upstream answered {status} with an error: {excerpt(judgement.body)}"
    return replace(
        judgement,
        code=failure.code,
        message=message,
        retry=failure.retry,
        acts_as=failure.acts_as or status,
        out_reason=failure.out_reason,
        mark=None,
    )


def _judge_error_status(status: int, body: bytes, location: str | None) -> Judgement:
    """Return the judgement of a reply that is not a 2xx."""
    text = remove_framing(body)
    if is_event_stream(text):
        events, _ = split_events(text)
        text = events[0].data.strip(BLANKS) if events else b""
    try:
        value = _decode_strictly(text)
    except _UnusableJSON:
        value, error, json_body = None, NO_WORDS, to_json_string(body)
    else:
        error, json_body = read_error(value), to_single_line(text)
    failure = judge_error(status, error.words, error.message)
    message = error.message or _describe_status(status, text, location)
    return Judgement(
        body=json_body,
        code=failure.code,
        message=message,
        retry=failure.retry,
        acts_as=status,
        out_reason=failure.out_reason,
        usage=read_usage(value.get("usage")) if isinstance(value, dict) else None,
        model=model_name(value.get("model")) if isinstance(value, dict) else None,
    )


def _describe_status(status: int, text: bytes, location: str | None) -> str:
    """Return the message of an error reply that has none of its own."""
    if 300 <= status < 400:
        target = f" to {clean_text(location, MAX_EXCERPT_CHARACTERS)}" if location else ""
        return f"the upstream answered {status}, a redirect{target}; set base_url to the final address"
    message = f"the upstream answered {status}: {excerpt(text)}" if text else f"{status} with an empty body"
    return f"{message}; stream = true on the upstream avoids it" if status in _PROXY_TIMEOUTS else message


def _invalid(body: bytes, message: str) -> Judgement:
    """Return the judgement of a 2xx body that is not JSON; it is kept as a string."""
    return Judgement(
        body=to_json_string(body),
        code=ErrorCode.INVALID_RESPONSE,
        message=message,
        retry=RetryClass.ONCE,
        acts_as=200,
    )

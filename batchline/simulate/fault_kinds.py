"""The table of faults: what the simulator sends, and what batchline makes of it.

`docs/faults.md` is generated from it, and `tests/simulate/test_fault_kinds.py` runs each kind through a batch.
"""

from enum import StrEnum
from typing import Final, Literal, NamedTuple

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Mark, OutReason
from batchline.simulate import wire_replies as wire
from batchline.simulate.wire_replies import Alteration, Refusal, WireReply, with_body, with_json


class Repetition(StrEnum):
    """The calls that one request costs if each of them gets the fault."""

    NONE = "one call"
    ONCE = "two calls"
    ATTEMPTS = "`max_attempts` calls"
    PATIENT = "only if the window ends first; the calls use up no attempts"


class FaultOutcome(NamedTuple):
    """The end of a request that always gets the fault: a code, a mark, a pause, or else a plain success."""

    code: ErrorCode | None = None
    repetition: Repetition = Repetition.NONE
    mark: Mark | None = None
    pause: OutReason | None = None


class FaultKind(NamedTuple):
    """A kind of fault.

    `refuse` makes a reply without an answer, `alter` one from a good answer; kinds with neither act on the
    connection. `reported` are the servers and standards that describe it in public. `note` completes the
    outcome. `needs` is what a request must be for the fault to matter.
    """

    name: str
    sent: str
    outcome: FaultOutcome = FaultOutcome()
    refuse: Refusal | None = None
    alter: Alteration | None = None
    reported: str = ""
    note: str = ""
    asks_wait: bool = False
    needs: Literal["schema", "embeddings"] | None = None


HTML_BODY: Final = b"<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"

_RATE_LIMITED = FaultOutcome(ErrorCode.RATE_LIMITED, Repetition.PATIENT)
_SERVER_ERROR = FaultOutcome(ErrorCode.SERVER_ERROR, Repetition.ATTEMPTS)
_BROKEN = FaultOutcome(ErrorCode.CONNECTION_ERROR, Repetition.ATTEMPTS)
_INVALID_REQUEST = FaultOutcome(ErrorCode.INVALID_REQUEST)
_INVALID_RESPONSE = FaultOutcome(ErrorCode.INVALID_RESPONSE, Repetition.ONCE)
_EMPTY = FaultOutcome(ErrorCode.EMPTY_RESPONSE, Repetition.ONCE)
_FILTERED = FaultOutcome(ErrorCode.CONTENT_FILTER)
_QUOTA = FaultOutcome(pause=OutReason.QUOTA)
_UNAUTHORIZED = FaultOutcome(pause=OutReason.UNAUTHORIZED)
_STREAM_ADVICE = "without a message of its own, it gets one that advises `stream = true`"
_OUTAGE = "from several requests it is an outage: the upstream is probed, and the requests wait"

GROUPS: Final[dict[str, tuple[FaultKind, ...]]] = {
    "Rate limits and overload": (
        FaultKind(
            "rate_limited",
            "429, with a wait in the form of `--retry-after`",
            _RATE_LIMITED,
            refuse=wire.rate_limit(wire.retry_after_seconds),
            reported="OpenAI, Anthropic, OpenRouter, DeepSeek",
            asks_wait=True,
        ),
        FaultKind(
            "rate_limited_ms",
            "429 with `retry-after-ms`",
            _RATE_LIMITED,
            refuse=wire.rate_limit(wire.retry_after_ms),
            reported="Azure OpenAI",
            asks_wait=True,
        ),
        FaultKind(
            "rate_limited_date",
            "429 with `Retry-After` as an HTTP date",
            _RATE_LIMITED,
            refuse=wire.rate_limit(wire.retry_after_date),
            reported="RFC 9110",
            asks_wait=True,
        ),
        FaultKind(
            "rate_limited_text",
            '429 with "try again in 1000ms" in its message only',
            _RATE_LIMITED,
            refuse=wire.rate_limit_in_message,
            reported="OpenAI",
            asks_wait=True,
        ),
        FaultKind(
            "rate_limited_reset",
            "429 with `x-ratelimit-reset-requests`, and nothing remaining",
            _RATE_LIMITED,
            refuse=wire.rate_limit(wire.ratelimit_reset),
            reported="OpenAI, Groq",
            asks_wait=True,
        ),
        FaultKind(
            "rate_limited_details",
            "429 in a list, with Google's `retryDelay`",
            _RATE_LIMITED,
            refuse=wire.rate_limit_with_details,
            reported="Gemini",
            asks_wait=True,
        ),
        FaultKind(
            "unavailable",
            "503",
            _SERVER_ERROR,
            refuse=wire.error(503, "The server is overloaded", "server_error"),
            reported="OpenAI, OpenRouter, DeepSeek",
            note=_OUTAGE,
        ),
        FaultKind(
            "unavailable_retry_after",
            "503 with `Retry-After`",
            _SERVER_ERROR,
            refuse=wire.rate_limit(wire.retry_after_seconds, status=503),
            reported="OpenRouter",
            asks_wait=True,
            note=_OUTAGE,
        ),
    ),
    "Other statuses": (
        FaultKind(
            "bad_request",
            "400",
            _INVALID_REQUEST,
            refuse=wire.error(400, "'temperature' is out of range", "invalid_request_error"),
            reported="OpenAI, Anthropic, DeepSeek",
        ),
        FaultKind(
            "unauthorized",
            "401",
            _UNAUTHORIZED,
            refuse=wire.error(401, "Incorrect API key provided", "authentication_error", "invalid_api_key"),
            reported="OpenAI, Anthropic, OpenRouter, DeepSeek",
        ),
        FaultKind(
            "payment_required",
            "402",
            _QUOTA,
            refuse=wire.error(402, "Insufficient credits", "billing_error"),
            reported="OpenRouter, DeepSeek, Anthropic",
        ),
        FaultKind(
            "insufficient_quota",
            "429 with the code `insufficient_quota`",
            _QUOTA,
            refuse=wire.error(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
            reported="OpenAI",
        ),
        FaultKind(
            "forbidden",
            "403",
            _INVALID_REQUEST,
            refuse=wire.error(403, "Your key has no access to it", "permission_error"),
            reported="OpenAI, Anthropic, OpenRouter",
            note="from three requests with no success between, the batch pauses (`unauthorized`)",
        ),
        FaultKind(
            "model_not_found",
            "404",
            _INVALID_REQUEST,
            refuse=wire.error(404, "The model 'm' does not exist", "invalid_request_error", "model_not_found"),
            reported="OpenAI, Ollama",
        ),
        FaultKind(
            "request_timeout",
            "408",
            FaultOutcome(ErrorCode.TIMEOUT, Repetition.ATTEMPTS),
            refuse=wire.error(408, "Your request timed out", "timeout"),
            reported="OpenRouter",
            note=_STREAM_ADVICE,
        ),
        FaultKind(
            "validation_details",
            "422 with a list of details",
            _INVALID_REQUEST,
            refuse=wire.always(422, b'{"detail":[{"loc":["body","n"],"msg":"Input should be a valid integer"}]}'),
            reported="FastAPI",
            note="the message has each place and its problem",
        ),
        FaultKind(
            "context_length",
            "400 with the code `context_length_exceeded`",
            FaultOutcome(ErrorCode.CONTEXT_LENGTH_EXCEEDED),
            refuse=wire.error(
                400,
                "This model's maximum context length is 8192 tokens",
                "invalid_request_error",
                "context_length_exceeded",
            ),
            reported="OpenAI",
        ),
        FaultKind(
            "content_filter",
            "400 with the code `content_filter`",
            _FILTERED,
            refuse=wire.error(400, "The prompt was filtered", "invalid_request_error", "content_filter"),
            reported="Azure OpenAI",
        ),
        FaultKind(
            "server_error",
            "500",
            _SERVER_ERROR,
            refuse=wire.error(500, "The server had an error", "server_error"),
            reported="OpenAI, Anthropic, DeepSeek",
        ),
        FaultKind(
            "origin_error",
            "520 with a page of HTML",
            _SERVER_ERROR,
            refuse=wire.always(520, HTML_BODY, media_type=b"text/html"),
            reported="Cloudflare",
            note=_OUTAGE,
        ),
        FaultKind(
            "proxy_timeout",
            "524 with a page of HTML",
            _SERVER_ERROR,
            refuse=wire.always(524, HTML_BODY, media_type=b"text/html"),
            reported="Cloudflare",
            note=_STREAM_ADVICE,
        ),
        FaultKind(
            "no_content",
            "204",
            FaultOutcome(ErrorCode.EMPTY_RESPONSE),
            refuse=wire.always(204, b"", framing=b""),
        ),
        FaultKind(
            "redirect",
            "307 to another address",
            FaultOutcome(ErrorCode.INVALID_RESPONSE),
            refuse=wire.always(307, b"", headers=b"location: /elsewhere\r\n"),
            reported="Starlette and FastAPI, for a path with a slash too many or too few",
            note="the message names the address",
        ),
    ),
    "Errors inside a 200": (
        FaultKind(
            "error_object",
            "an error of the type `server_error`",
            _SERVER_ERROR,
            refuse=wire.error(200, "The model crashed", "server_error"),
        ),
        FaultKind(
            "error_inside_429",
            "an error with the code 429",
            _RATE_LIMITED,
            refuse=wire.always(200, b'{"error":{"code":429,"message":"Rate limited upstream"}}'),
            reported="OpenRouter",
        ),
        FaultKind(
            "error_inside_503",
            "an error with the code 503",
            _SERVER_ERROR,
            refuse=wire.always(200, b'{"error":{"code":503,"message":"No provider is available"}}'),
            reported="OpenRouter",
            note="never an outage",
        ),
        FaultKind(
            "error_inside_400",
            "an error with the code 400",
            _INVALID_REQUEST,
            refuse=wire.always(200, b'{"error":{"code":400,"message":"Bad value of top_p"}}'),
            reported="OpenRouter",
        ),
        FaultKind(
            "error_in_choice",
            "an error in the place of a choice's message",
            _SERVER_ERROR,
            alter=with_json(wire.fail_choices),
            reported="OpenRouter",
        ),
        FaultKind(
            "error_inside_unknown",
            "an error whose code and type say nothing",
            _INVALID_RESPONSE,
            refuse=wire.always(200, b'{"error":{"message":"Something went wrong"}}'),
        ),
    ),
    "A 200 without an answer": (
        FaultKind("empty_body", "no byte", _EMPTY, refuse=wire.always(200, b"")),
        FaultKind("empty_object", "`{}`", _EMPTY, refuse=wire.always(200, b"{}")),
        FaultKind("null_body", "`null`", _EMPTY, refuse=wire.always(200, b"null")),
        FaultKind("empty_list", "`[]`", _EMPTY, refuse=wire.always(200, b"[]")),
        FaultKind(
            "no_choices",
            "`choices: []` (of other endpoints: `data`, `output`, `content`, `results`)",
            _EMPTY,
            alter=with_json(wire.set_content([])),
        ),
        FaultKind("null_choices", "`choices: null`", _EMPTY, alter=with_json(wire.set_content(None))),
        FaultKind("null_content", "content that is null", _EMPTY, alter=with_json(wire.set_text(None))),
        FaultKind(
            "content_filtered",
            "`finish_reason: content_filter` without content",
            _FILTERED,
            alter=with_json(wire.set_finish("content_filter", is_filter=True)),
            reported="OpenAI, Azure OpenAI",
        ),
        FaultKind("truncated", "half of the JSON", _INVALID_RESPONSE, alter=with_body(lambda b: b[: len(b) // 2])),
        FaultKind(
            "html",
            "a page of HTML",
            _INVALID_RESPONSE,
            refuse=wire.always(200, HTML_BODY, media_type=b"text/html"),
        ),
        FaultKind("nan", "`NaN` as a number", _INVALID_RESPONSE, alter=with_body(wire.add_nan)),
        FaultKind(
            "missing_vector",
            "one embedding fewer than there are inputs",
            _INVALID_RESPONSE,
            alter=with_json(wire.drop_vector),
            needs="embeddings",
        ),
    ),
    "Answers with a flaw": (
        FaultKind(
            "finish_length",
            "`finish_reason: length`, `max_output_tokens`, `max_tokens`",
            FaultOutcome(mark=Mark.TRUNCATED),
            alter=with_json(wire.set_finish("length")),
            reported="OpenAI, Anthropic, vLLM",
            note="`on_truncated` can make it an error",
        ),
        FaultKind(
            "invalid_output",
            "JSON that does not fit the schema that was asked for",
            FaultOutcome(mark=Mark.INVALID_OUTPUT),
            alter=with_json(wire.set_text('{"unexpected": true}')),
            note="`on_invalid_output` can make it an error, or repeat the request once",
            needs="schema",
        ),
        FaultKind(
            "fenced_output",
            "JSON in code fences, although a schema was asked for",
            FaultOutcome(mark=Mark.INVALID_OUTPUT),
            alter=with_json(wire.fence_text),
            note="the text is kept as it is",
            needs="schema",
        ),
    ),
    "Odd forms of a good answer": (
        FaultKind(
            "bom",
            "a byte-order mark first",
            reported="RFC 8259",
            alter=with_body(lambda body: b"\xef\xbb\xbf" + body),
        ),
        FaultKind(
            "comment_lines",
            "comments and blank lines before the JSON",
            alter=with_body(lambda body: b": PROCESSING\n\n: PROCESSING\n\n" + body),
            reported="DeepSeek (blank lines), OpenRouter (comments in streams)",
        ),
        FaultKind(
            "done_after",
            "`data: [DONE]` after the JSON",
            alter=with_body(lambda body: body + b"\n\ndata: [DONE]\n\n"),
        ),
        FaultKind(
            "event_stream",
            "a stream of events, although none was asked for",
            alter=with_body(wire.to_event_stream, media_type=b"text/event-stream"),
        ),
        FaultKind(
            "separators",
            "unescaped U+2028, U+2029 and U+0085 in the text",
            reported="RFC 8259",
            alter=with_body(wire.insert_separators),
            note="written as escapes",
        ),
        FaultKind(
            "reasoning_left_out",
            f"{wire.UNCOUNTED_REASONING_TOKENS} thinking tokens in the total that the completion's count lacks",
            alter=with_json(wire.leave_out_reasoning),
            reported="Gemini",
            note="the output's tokens are the total less the prompt's",
        ),
        FaultKind(
            "usage_strings",
            "counts of tokens as text",
            alter=with_json(wire.stringify_usage),
            note="the usage counts as not reported",
        ),
    ),
    "Odd HTTP": (
        FaultKind(
            "both_lengths",
            "chunks, and a Content-Length that is wrong",
            reported="RFC 9112",
            alter=wire.chunked_with_length,
            note="the chunks count",
        ),
        FaultKind("length_twice", "the same Content-Length twice", reported="RFC 9110", alter=wire.length_twice),
        FaultKind("chunk_spaces", "spaces after the sizes of chunks", alter=wire.chunked_with_spaces),
        FaultKind(
            "trailers",
            "trailers, one of them with a header's name",
            reported="RFC 9110",
            alter=wire.chunked_with_trailers,
            note="trailers replace no header",
        ),
        FaultKind(
            "bare_lf",
            "lines of the head that end in LF",
            reported="RFC 9112",
            alter=lambda answer: WireReply(200, answer.body, newline=b"\n"),
        ),
        FaultKind(
            "folded_header",
            "a header in two lines",
            reported="RFC 9112",
            alter=lambda answer: WireReply(200, answer.body, b"server-timing: total,\r\n  queue\r\n"),
        ),
        FaultKind(
            "interim",
            "103 before the answer",
            reported="RFC 8297",
            alter=lambda answer: WireReply(200, answer.body, interim=b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        ),
        FaultKind(
            "gzip_members",
            "gzip in two members",
            reported="RFC 1952",
            alter=with_body(wire.gzip_in_members, headers=b"content-encoding: gzip\r\n"),
        ),
        FaultKind(
            "cut_gzip",
            "half of the gzip",
            _BROKEN,
            alter=with_body(wire.cut_gzip, headers=b"content-encoding: gzip\r\n"),
        ),
    ),
    "Broken connections": (
        FaultKind(
            "dropped",
            "the connection is closed instead of an answer",
            _BROKEN,
            note=f"an idle connection that breaks is replaced at once, without an attempt; {_OUTAGE}",
        ),
        FaultKind("cut_off", "the connection is closed within the answer", _BROKEN),
        FaultKind(
            "hanging",
            "no answer, and the connection stays open",
            FaultOutcome(ErrorCode.TIMEOUT, Repetition.ATTEMPTS),
            note="each ends after `first_byte_timeout_s`, by default `total_timeout_s`",
        ),
    ),
}
"""Kinds of faults by the heading of their section in `docs/faults.md`."""

FAULT_KINDS: Final[dict[str, FaultKind]] = {kind.name: kind for group in GROUPS.values() for kind in group}

SHARE_OPTIONS: Final = (
    *("rate_limited", "server_error", "unavailable", "dropped", "cut_off", "hanging"),
    *("truncated", "html", "error_object"),
)
"""Kinds that have an option of their own too, in the order in which they are drawn."""

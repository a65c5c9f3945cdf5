"""Replies of faults as they go over the wire: heads, framings, and changes of a good answer."""

import gzip
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from math import ceil
from typing import Any, NamedTuple, TypeAlias

from batchline.simulate.replies import SimulatedReply, error_body

REASON_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
JSON = b"application/json"
UNCOUNTED_REASONING_TOKENS = 40


class WireReply(NamedTuple):
    """A reply; `framing` are the header lines that delimit the body, None for a Content-Length."""

    status: int
    body: bytes
    headers: bytes = b""
    media_type: bytes = JSON
    framing: bytes | None = None
    interim: bytes = b""
    newline: bytes = b"\r\n"

    def to_bytes(self, number: int) -> bytes:
        """Return the bytes to send; `number` is part of the request id."""
        framing = b"content-length: %d\r\n" % len(self.body) if self.framing is None else self.framing
        head = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nx-request-id: sim-%x\r\n%b%b\r\n" % (
            self.status,
            REASON_PHRASES.get(self.status, b"Status"),
            self.media_type,
            number,
            self.headers,
            framing,
        )
        if self.newline != b"\r\n":
            head = head.replace(b"\r\n", self.newline)
        return self.interim + head + self.body


Refusal: TypeAlias = Callable[[float], WireReply]
"""Makes a reply that needs no answer, from the seconds that it asks to wait for."""

Alteration: TypeAlias = Callable[[SimulatedReply], WireReply]
"""Makes a reply from a good answer."""


def always(status: int, body: bytes, **parts: Any) -> Refusal:
    """Return a refusal that is the same each time."""
    reply = WireReply(status, body, **parts)
    return lambda _: reply


def error(status: int, message: str, error_type: str, code: str | None = None) -> Refusal:
    """Return a refusal with an error in OpenAI's format."""
    return always(status, error_body(message, error_type, code))


def rate_limit(form: Callable[[float], bytes], *, status: int = 429) -> Refusal:
    """Return a refusal that asks for the wait in the header lines of that form."""
    body = RATE_LIMIT_BODY if status == 429 else OVERLOADED_BODY
    return lambda wait_s: WireReply(status, body, form(wait_s))


RATE_LIMIT_BODY = error_body("Rate limit reached", "requests", "rate_limit_exceeded")
OVERLOADED_BODY = error_body("The server is overloaded", "server_error")


def rate_limit_in_message(wait_s: float) -> WireReply:
    """Return a 429 that names the wait in its message only."""
    message = f"Rate limit reached for requests. Please try again in {round(wait_s * 1e3)}ms."
    return WireReply(429, error_body(message, "requests", "rate_limit_exceeded"))


def rate_limit_with_details(wait_s: float) -> WireReply:
    """Return a 429 that names the wait in Google's details of an error."""
    retry_info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait_s:.3f}s"}
    failure = {"code": 429, "message": "Out of quota", "status": "RESOURCE_EXHAUSTED", "details": [retry_info]}
    return WireReply(429, json.dumps([{"error": failure}]).encode())


def retry_after_seconds(wait_s: float) -> bytes:
    """Return the header with seconds."""
    return b"retry-after: %b\r\n" % f"{wait_s:.3f}".encode()


def retry_after_ms(wait_s: float) -> bytes:
    """Return the header with milliseconds."""
    return b"retry-after-ms: %d\r\n" % round(wait_s * 1e3)


def retry_after_date(wait_s: float) -> bytes:
    """Return the header with a date, which is up to a second late."""
    # Dates have whole seconds; rounding down would be too early.
    return b"retry-after: %b\r\n" % formatdate(ceil(time.time() + wait_s), usegmt=True).encode()


def ratelimit_reset(wait_s: float) -> bytes:
    """Return the headers of a budget of which nothing is left until it is reset."""
    return b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: %dms\r\n" % round(wait_s * 1e3)


RETRY_AFTER_FORMS: dict[str, Callable[[float], bytes]] = {
    "seconds": retry_after_seconds,
    "ms": retry_after_ms,
    "date": retry_after_date,
    "none": lambda _: b"",
}


def with_body(change: Callable[[bytes], bytes], *, media_type: bytes = JSON, headers: bytes = b"") -> Alteration:
    """Return an alteration of the body's bytes."""
    return lambda answer: WireReply(200, change(answer.body), headers, media_type)


def with_json(change: Callable[[dict[str, Any]], None]) -> Alteration:
    """Return an alteration of the decoded answer, in place."""

    def alter(answer: SimulatedReply) -> WireReply:
        members = json.loads(answer.body)
        change(members)
        return WireReply(200, json.dumps(members, separators=(",", ":")).encode())

    return alter


def set_content(value: object) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets the member with the answers (`choices`, `data`, `output`, …)."""

    def change(answer: dict[str, Any]) -> None:
        answer[_content_member(answer)] = value

    return change


def set_text(text: str | None) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets each text of the answer; `data` and `results` become empty."""

    def change(answer: dict[str, Any]) -> None:
        member = _content_member(answer)
        if member not in {"choices", "content", "output"}:
            answer[member] = []
            return
        for item in answer[member]:
            if member == "output":
                item["content"][0]["text"] = text
            elif "message" in item:
                item["message"]["content"] = text
            else:
                item["text"] = text

    return change


def set_finish(reason: str, *, is_filter: bool = False) -> Callable[[dict[str, Any]], None]:
    """Return a change that ends the answer for that reason, in its endpoint's words; some endpoints have none."""

    def change(answer: dict[str, Any]) -> None:
        if _content_member(answer) in {"data", "results"}:
            return
        if is_filter:
            set_text("")(answer)
        if "stop_reason" in answer:
            answer["stop_reason"] = "refusal" if is_filter else "max_tokens"
        elif "output" in answer:
            answer["status"] = "incomplete"
            answer["incomplete_details"] = {"reason": reason if is_filter else "max_output_tokens"}
        for choice in answer.get("choices", ()):
            choice["finish_reason"] = reason

    return change


def fence_text(answer: dict[str, Any]) -> None:
    """Put an object in code fences in the place of each text."""
    set_text('```json\n{"answer": "in code fences"}\n```')(answer)


def drop_vector(answer: dict[str, Any]) -> None:
    """Remove the last embedding."""
    if "data" in answer:
        answer["data"].pop()


def fail_choices(answer: dict[str, Any]) -> None:
    """Put an error in the place of what each choice, or else the answer, has."""
    failure = {"code": 502, "message": "The provider broke off"}
    if "choices" in answer:
        answer["choices"] = [{"index": 0, "finish_reason": "error", "error": failure}]
    else:
        answer[_content_member(answer)] = []
        answer["error"] = failure


def add_nan(body: bytes) -> bytes:
    """Return the answer with a member that is NaN, which is not JSON."""
    return body[:-1] + b',"score":NaN}'


def leave_out_reasoning(answer: dict[str, Any]) -> None:
    """Count reasoning tokens in the total, but not in the completion's."""
    usage = answer.get("usage", {})
    if "total_tokens" in usage:
        usage["total_tokens"] += UNCOUNTED_REASONING_TOKENS


def stringify_usage(answer: dict[str, Any]) -> None:
    """Make texts of the counts of tokens."""
    usage = answer.get("usage", {})
    usage.update({name: str(count) for name, count in usage.items() if isinstance(count, int)})


def to_event_stream(body: bytes) -> bytes:
    """Return the answer as a stream of events: chat in chunks, others in one event."""
    answer = json.loads(body)
    if answer.get("object") != "chat.completion":
        return b"data: %b\n\ndata: [DONE]\n\n" % body
    events: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        text = choice["message"]["content"]
        deltas: tuple[dict[str, str], ...] = (
            {"role": "assistant", "content": text[:10]},
            {"content": text[10:]},
            {},
        )
        reasons = (None, None, choice["finish_reason"])
        events += [
            {"choices": [{"index": choice["index"], "delta": delta, "finish_reason": reason}]}
            for delta, reason in zip(deltas, reasons, strict=True)
        ]
    events.append({"choices": [], "usage": answer["usage"]})
    common = {"id": answer["id"], "object": "chat.completion.chunk", "created": 0, "model": answer["model"]}
    lines = [b"data: %b\n\n" % json.dumps(common | event).encode() for event in events]
    return b"".join(lines) + b"data: [DONE]\n\n"


def insert_separators(body: bytes) -> bytes:
    """Return the answer with U+2028, U+2029 and U+0085 at the start of each of its texts."""
    return body.replace(b'"the ', '"\u2028\u2029\x85the '.encode())


def cut_gzip(body: bytes) -> bytes:
    """Return the first half of the compressed answer."""
    compressed = gzip.compress(body)
    return compressed[: len(compressed) // 2]


def gzip_in_members(body: bytes) -> bytes:
    """Return the answer as two gzip members, one after the other."""
    half = len(body) // 2
    return gzip.compress(body[:half]) + gzip.compress(body[half:])


def chunked_with_length(answer: SimulatedReply) -> WireReply:
    """Return the answer in chunks, with a wrong Content-Length too."""
    framing = b"transfer-encoding: chunked\r\ncontent-length: 1\r\n"
    return WireReply(200, _chunk(answer.body), framing=framing)


def chunked_with_trailers(answer: SimulatedReply) -> WireReply:
    """Return the answer in chunks, with a trailer that contradicts a header."""
    body = _chunk(answer.body, trailers=b"x-request-id: trailer\r\nserver-timing: total\r\n")
    return WireReply(200, body, framing=b"transfer-encoding: chunked\r\ntrailer: x-request-id\r\n")


def chunked_with_spaces(answer: SimulatedReply) -> WireReply:
    """Return the answer in chunks whose sizes are followed by spaces."""
    return WireReply(200, _chunk(answer.body, padding=b"  "), framing=b"transfer-encoding: chunked\r\n")


def length_twice(answer: SimulatedReply) -> WireReply:
    """Return the answer with its Content-Length twice."""
    return WireReply(200, answer.body, framing=b"content-length: %d\r\n" % len(answer.body) * 2)


def _chunk(body: bytes, *, trailers: bytes = b"", padding: bytes = b"") -> bytes:
    half = len(body) // 2
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), padding, part) for part in (body[:half], body[half:]))
    return chunks + b"0\r\n" + trailers + b"\r\n"


def _content_member(answer: dict[str, Any]) -> str:
    return next(name for name in ("choices", "data", "output", "content", "results") if name in answer)

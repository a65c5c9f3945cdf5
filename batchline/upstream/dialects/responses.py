"""`/v1/responses`: status `completed` with an output item that is not reasoning, or `incomplete` by a limit."""

from typing import Any, Final

import msgspec

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Judgement, Mark
from batchline.models.usage import ReportedUsage, to_usage
from batchline.upstream.dialects.answers import (
    Answer,
    ModelName,
    has_text,
    is_filtered,
    missing_list,
    reason_text,
)


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str = ""


class _Item(msgspec.Struct, gc=False):
    type: str
    content: list[_Part] | None = None


class _ResponseReply(msgspec.Struct, gc=False):
    status: str
    output: list[_Item]
    usage: ReportedUsage | None = None
    model: ModelName | None = None


_decode: Final = msgspec.json.Decoder(_ResponseReply).decode
COMPLETED: Final = "completed"


def read_quickly(body: bytes) -> Judgement | None:
    """Return the judgement of an ordinary answer; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    if reply.status != COMPLETED:
        return None
    if not any(_is_ordinary(item) for item in reply.output):
        return None
    usage = reply.usage
    return Judgement(
        body=body,
        finish_reason=COMPLETED,
        usage=None if usage is None else to_usage(usage),
        model=reply.model,
    )


def _is_ordinary(item: _Item) -> bool:
    if item.type != "message" or not item.content:
        return item.type == "function_call"
    first = item.content[0]
    return first.type == "output_text" and first.text != ""


def read_answer(body: dict[str, Any]) -> Answer:
    """Return the outcome of a decoded body; the finish reason is the status, or why it is incomplete."""
    status = body.get("status")
    if status == "incomplete":
        return _read_incomplete(body)
    if status != COMPLETED:
        if status is None:
            failure = missing_list(body, "output")
            return failure or Answer(ErrorCode.INVALID_RESPONSE, "the response has no status")
        return Answer(
            ErrorCode.INVALID_RESPONSE, f"the response's status is {reason_text(status)!r}, not 'completed'"
        )
    if (failure := missing_list(body, "output")) is not None:
        return failure
    if _has_output(body):
        return Answer(finish_reason=COMPLETED)
    return Answer(ErrorCode.EMPTY_RESPONSE, "no output item has content", COMPLETED)


def _read_incomplete(body: dict[str, Any]) -> Answer:
    details = body.get("incomplete_details")
    reason = reason_text(details.get("reason")) if isinstance(details, dict) else None
    if is_filtered(reason):
        if _has_output(body):
            return Answer(finish_reason=reason)
        return Answer(ErrorCode.CONTENT_FILTER, f"a content filter blocked the answer ({reason})", reason)
    message = None if _has_output(body) else "no output item has content"
    return Answer(None, message, reason or "incomplete", Mark.TRUNCATED)


def _has_output(body: dict[str, Any]) -> bool:
    output = body.get("output")
    return isinstance(output, list) and any(_answers(item) for item in output)


def _answers(item: object) -> bool:
    """Return True for a message with content, and for a call of any tool."""
    if not isinstance(item, dict) or item.get("type") == "reasoning":
        return False
    if item.get("type") != "message":
        return isinstance(item.get("type"), str)
    return has_text(item.get("content"))

"""`/v1/chat/completions`: a choice answers with content, tool calls, a refusal, audio, images or logprobs."""

from typing import Any, Final

import msgspec
from msgspec import Raw

from batchline.models.outcomes import Judgement, Mark
from batchline.models.usage import ReportedUsage, to_usage
from batchline.upstream.dialects.answers import ORDINARY_REASONS, Answer, ModelName, has_objects, has_text
from batchline.upstream.dialects.choices import Choice, read_choices


class _ToolCall(msgspec.Struct, gc=False):
    """Any object: its members are skipped."""


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _ChatChoice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str | None = None
    error: Raw = Raw()


class _ChatReply(msgspec.Struct, gc=False):
    choices: list[_ChatChoice]
    usage: ReportedUsage | None = None
    model: ModelName | None = None


_decode: Final = msgspec.json.Decoder(_ChatReply).decode


def read_quickly(body: bytes) -> Judgement | None:
    """Return the judgement of an ordinary answer, text or tool calls; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    mark = None
    for choice in reply.choices:
        message = choice.message
        if not (message.content or message.tool_calls) or choice.error:
            return None
        if choice.finish_reason == "length":
            mark = Mark.TRUNCATED
        elif choice.finish_reason not in ORDINARY_REASONS:
            return None
    if not reply.choices:
        return None
    usage = reply.usage
    return Judgement(
        body=body,
        finish_reason=reply.choices[0].finish_reason,
        mark=mark,
        usage=None if usage is None else to_usage(usage),
        model=reply.model,
    )


def read_answer(body: dict[str, Any]) -> Answer:
    """Return the outcome of a decoded body."""
    return read_choices(body, _has_content)


def _has_content(choice: Choice) -> bool:
    message = choice.get("message")
    if has_logprobs(choice):
        return True
    if not isinstance(message, dict):
        return False
    return (
        has_text(message.get("content"))
        or has_text(message.get("refusal"))
        or has_objects(message.get("tool_calls"))
        or has_objects(message.get("images"))  # image models behind OpenRouter answer with nothing else
        or any(
            isinstance(member := message.get(name), dict) and bool(member) for name in ("audio", "function_call")
        )
    )


def has_logprobs(choice: Choice) -> bool:
    """Return True if the choice has log probabilities: the answer of a request that scores a text."""
    logprobs = choice.get("logprobs")
    return isinstance(logprobs, dict) and any(
        isinstance(member, list) and bool(member) for member in logprobs.values()
    )

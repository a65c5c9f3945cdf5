"""`/v1/messages`, Anthropic's dialect: a content block that is not thinking."""

from typing import Any, Final

import msgspec

from batchline.models.outcomes import Judgement, Mark
from batchline.models.usage import ReportedUsage, to_usage
from batchline.upstream.dialects.answers import (
    ORDINARY_REASONS,
    Answer,
    ModelName,
    empty,
    is_cut_off,
    missing_list,
    reason_text,
)

_THINKING: Final = frozenset({"thinking", "redacted_thinking"})


class _Block(msgspec.Struct, gc=False):
    type: str
    text: str = ""


class _MessageReply(msgspec.Struct, gc=False):
    content: list[_Block]
    stop_reason: str | None = None
    usage: ReportedUsage | None = None
    model: ModelName | None = None


_decode: Final = msgspec.json.Decoder(_MessageReply).decode


def read_quickly(body: bytes) -> Judgement | None:
    """Return the judgement of an ordinary answer; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    reason = reply.stop_reason
    is_truncated = reason == "max_tokens"
    if not is_truncated and reason not in ORDINARY_REASONS:
        return None
    usage = reply.usage
    for block in reply.content:
        if block.text if block.type == "text" else block.type == "tool_use":
            return Judgement(
                body=body,
                finish_reason=reason,
                mark=Mark.TRUNCATED if is_truncated else None,
                usage=None if usage is None else to_usage(usage),
                model=reply.model,
            )
    return None


def read_answer(body: dict[str, Any]) -> Answer:
    """Return the outcome of a decoded body."""
    reason = reason_text(body.get("stop_reason"))
    content = body.get("content")
    if isinstance(content, list) and any(_answers(block) for block in content):
        return Answer(finish_reason=reason, mark=Mark.TRUNCATED if is_cut_off(reason) else None)
    failure = missing_list(body, "content")
    if failure is not None and reason is None:
        return failure
    if content is not None and not isinstance(content, list):
        return failure or Answer()
    return empty(reason, "no content block has content")


def _answers(block: object) -> bool:
    """Return True for a text that is not empty and for any other block but thinking."""
    if not isinstance(block, dict) or not isinstance(kind := block.get("type"), str) or kind in _THINKING:
        return False
    return isinstance(text := block.get("text"), str) and text != "" if kind == "text" else True

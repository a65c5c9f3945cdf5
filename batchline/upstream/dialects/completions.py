"""`/v1/completions`: a choice answers with text or logprobs."""

from typing import Any, Final

import msgspec
from msgspec import Raw

from batchline.models.outcomes import Judgement, Mark
from batchline.models.usage import ReportedUsage, to_usage
from batchline.upstream.dialects.answers import ORDINARY_REASONS, Answer, ModelName, has_text
from batchline.upstream.dialects.chat import has_logprobs
from batchline.upstream.dialects.choices import Choice, read_choices


class _TextChoice(msgspec.Struct, gc=False):
    text: str
    finish_reason: str | None = None
    error: Raw = Raw()


class _TextReply(msgspec.Struct, gc=False):
    choices: list[_TextChoice]
    usage: ReportedUsage | None = None
    model: ModelName | None = None


_decode: Final = msgspec.json.Decoder(_TextReply).decode


def read_quickly(body: bytes) -> Judgement | None:
    """Return the judgement of an ordinary answer; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    mark = None
    for choice in reply.choices:
        if not choice.text or choice.error:
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
    return has_text(choice.get("text")) or has_logprobs(choice)

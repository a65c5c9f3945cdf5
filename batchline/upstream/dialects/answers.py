"""Types and rules that the tables of the endpoints share."""

from typing import Annotated, Any, Final, NamedTuple

from msgspec import Meta

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import ERROR_REASONS, FILTER_REASONS, TRUNCATION_REASONS, Mark

ORDINARY_REASONS: Final = frozenset(
    {None, "stop", "tool_calls", "function_call", "end_turn", "tool_use", "stop_sequence", "eos_token", "eos"}
)
"""Finish reasons of a whole answer, for the fast path; others are compared in lower case."""

MAX_REASON_CHARACTERS: Final = 100
MAX_MODEL_CHARACTERS: Final = 256

ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARACTERS)]
"""The model that answered, for the fast path; others are shortened by `model_name`."""


class Answer(NamedTuple):
    """The answer in a 2xx body; `code` is None if it answers.

    A `message` without a code means that the answer was cut off before its first word.
    """

    code: ErrorCode | None = None
    message: str | None = None
    finish_reason: str | None = None
    mark: Mark | None = None


def reason_text(value: object) -> str | None:
    """Return a finish reason as text, or None; some servers send an object (TGI) or a number."""
    if isinstance(value, dict):
        value = value.get("type")
    if not isinstance(value, str) or not value:
        return None
    return value[:MAX_REASON_CHARACTERS].encode(errors="replace").decode()


def model_name(value: object) -> str | None:
    """Return the name of the model that answered, or None."""
    if not isinstance(value, str) or not value:
        return None
    name = value[:MAX_MODEL_CHARACTERS]
    return name if name.isascii() else name.encode(errors="replace").decode()


def is_filtered(reason: str | None) -> bool:
    """Return True if a content filter ended the answer."""
    # Some faces of Gemini name the filter after a colon: "content_filter: SAFETY".
    return reason is not None and reason.lower().partition(":")[0] in FILTER_REASONS


def is_cut_off(reason: str | None) -> bool:
    """Return True if a limit of tokens ended the answer."""
    return reason is not None and reason.lower() in TRUNCATION_REASONS


def is_broken(reason: str | None) -> bool:
    """Return True if an error ended the answer."""
    return reason is not None and reason.lower() in ERROR_REASONS


def missing_list(body: dict[str, Any], name: str) -> Answer | None:
    """Return the failure of a body whose member is not a list with items, or None if it is one."""
    member = body.get(name)
    if isinstance(member, list) and member:
        return None
    if member is None or member == []:
        return Answer(
            ErrorCode.EMPTY_RESPONSE, f"the answer has no {name}" if member is None else f"{name} is empty"
        )
    return Answer(ErrorCode.INVALID_RESPONSE, f"{name} is not a list")


def empty(reason: str | None, problem: str) -> Answer:
    """Return the outcome of an answer without content, according to its finish reason."""
    if is_filtered(reason):
        return Answer(ErrorCode.CONTENT_FILTER, f"a content filter blocked the answer ({reason})", reason)
    if is_cut_off(reason):
        return Answer(None, problem, reason, Mark.TRUNCATED)
    if is_broken(reason):
        return Answer(ErrorCode.INVALID_RESPONSE, f"the answer broke off with finish reason {reason!r}", reason)
    return Answer(
        ErrorCode.EMPTY_RESPONSE, problem if reason is None else f"{problem} (finish reason {reason!r})", reason
    )


def has_text(value: object) -> bool:
    """Return True for a text that is not empty, or a list of parts of which one is not."""
    if isinstance(value, list):
        return any(_is_part(part) for part in value)
    return isinstance(value, str) and value != ""


def _is_part(part: object) -> bool:
    if not isinstance(part, dict):
        return isinstance(part, str) and part != ""
    if part.get("type") in ("thinking", "reasoning", "redacted_thinking"):
        return False
    if "text" in part or "refusal" in part:
        return has_text(part.get("text")) or has_text(part.get("refusal"))
    return bool(part)


def has_objects(value: object) -> bool:
    """Return True for a list with an object in it."""
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)

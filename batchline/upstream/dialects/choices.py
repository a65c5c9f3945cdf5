"""The rules for lists of choices, which chat and completions have in common."""

from collections.abc import Callable
from typing import Any

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Mark
from batchline.upstream.dialects.answers import Answer, empty, is_broken, is_cut_off, missing_list, reason_text
from batchline.upstream.dialects.error_words import has_error

Choice = dict[str, Any]


def read_choices(body: dict[str, Any], has_content: Callable[[Choice], bool]) -> Answer:
    """Return the outcome of a body with `choices`: one choice with content and without error is an answer.

    The finish reason is that of the first choice that answers. The answer is truncated if any of its choices is.
    """
    if _is_blocked_prompt(body):
        return Answer(ErrorCode.CONTENT_FILTER, "a content filter blocked the prompt")
    if (failure := missing_list(body, "choices")) is not None:
        return failure
    choices = [choice for choice in body["choices"] if isinstance(choice, dict)]
    whole = [choice for choice in choices if not has_error(choice.get("error")) and not is_broken(_reason(choice))]
    if answers := [choice for choice in whole if has_content(choice)]:
        is_truncated = any(is_cut_off(_reason(choice)) for choice in whole)
        return Answer(finish_reason=_reason(answers[0]), mark=Mark.TRUNCATED if is_truncated else None)
    if len(whole) < len(choices):
        reason = next((reason for choice in choices if is_broken(reason := _reason(choice))), None)
        return (
            empty(reason, "the only choice is an error")
            if reason
            else Answer(ErrorCode.INVALID_RESPONSE, "every choice is an error")
        )
    outcomes = [empty(_reason(choice), "no choice has content") for choice in whole]
    outcomes.append(Answer(ErrorCode.EMPTY_RESPONSE, "no choice has content"))
    # A choice that was cut off or filtered says more than one that is only empty.
    return min(outcomes, key=lambda outcome: (outcome.code is not None, outcome.code is ErrorCode.EMPTY_RESPONSE))


def _reason(choice: Choice) -> str | None:
    return reason_text(choice.get("finish_reason"))


def _is_blocked_prompt(body: dict[str, Any]) -> bool:
    """Return True if the reply is Gemini's for a prompt that it refuses to answer."""
    feedback = body.get("promptFeedback") or body.get("prompt_feedback")
    reason = isinstance(feedback, dict) and (feedback.get("blockReason") or feedback.get("block_reason"))
    return bool(reason) and not body.get("choices")

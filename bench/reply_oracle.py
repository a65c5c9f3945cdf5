"""Judges 2xx bodies by the rules of the contract, plainly and slowly; shares no code with ours."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any, NamedTuple

from bench.reply_grammar import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, MODERATIONS, RESPONSES


class Expected(NamedTuple):
    """The judgement that a body must get; `usage` has the prompt's, the completion's and all tokens."""

    code: str | None = None
    retry: str | None = None
    mark: str | None = None
    reason: str | None = None
    out: str | None = None
    usage: tuple[int, int, int] | None = None


EMPTY = Expected("empty_response", "once")
INVALID = Expected("invalid_response", "once")
FILTERED = Expected("content_filter", "never")
STATUS = {
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "overloaded_error": 503,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
}


def expect(endpoint: str, inputs: int, text: bytes) -> Expected:
    """Return the judgement of a body without frame."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return INVALID
    decoded = decoded.strip(" \t\r\n")
    while decoded.startswith(":"):  # a comment
        decoded = re.sub(r"^:[^\r\n]*", "", decoded).strip(" \t\r\n")
    if not decoded:
        return EMPTY
    try:
        value = strict_json(decoded)
    except (ValueError, RecursionError):
        return INVALID
    usage = usage_of(endpoint, value)
    result, has_words = judge_value(endpoint, inputs, value)
    if result.code is None and (has_words or not (isinstance(value, dict) and is_set(value.get("error")))):
        return result._replace(usage=usage)
    error = error_in(value)
    if error is not None:
        result = by_error(error, value if isinstance(value, dict) else value[0])._replace(reason=result.reason)
    return result._replace(usage=usage)


def strict_json(text: str) -> Any:
    """Decode JSON that every common parser can read; raises `ValueError` for the rest."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def short(digits: str) -> str:
        if any(len(run) > 4_300 for run in re.findall(r"\d+", digits)):
            raise ValueError("a long number")
        return digits

    value = json.loads(
        text,
        parse_constant=refuse,
        parse_int=lambda digits: int(short(digits)),
        parse_float=lambda digits: float(short(digits)),
    )
    if depth_of(text) > 512:
        raise ValueError("too deep")
    return value


def depth_of(text: str) -> int:
    """Return the levels of nesting of valid JSON, by counting brackets outside strings."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def judge_value(endpoint: str, inputs: int, value: Any) -> tuple[Expected, bool]:  # noqa: PLR0911
    """Return the judgement by the answer alone, and True if there is content."""
    if value is None or value in ([], ""):
        return EMPTY, False
    if not isinstance(value, dict):
        return INVALID, False
    if endpoint in {CHAT, COMPLETIONS}:
        return judge_choices(endpoint, value.get("choices"))
    if endpoint == RESPONSES:
        return judge_response(value)
    if endpoint == MESSAGES:
        return judge_message(value)
    items = value.get("results" if endpoint == MODERATIONS else "data")
    if items is None or items == []:
        return EMPTY, False
    if not isinstance(items, list):
        return INVALID, False
    if endpoint == MODERATIONS:
        return (Expected(), True) if any(isinstance(item, dict) for item in items) else (EMPTY, False)
    is_right = len(items) == inputs and all(
        isinstance(item, dict) and is_vector(item.get("embedding")) for item in items
    )
    return (Expected(), True) if is_right else (INVALID, False)


def judge_choices(endpoint: str, choices: Any) -> tuple[Expected, bool]:
    """Return the judgement of chat and completions."""
    if choices is None or choices == []:
        return EMPTY, False
    if not isinstance(choices, list):
        return INVALID, False
    choices = [choice for choice in choices if isinstance(choice, dict)]
    broken = [choice for choice in choices if (reason_of(choice) or "").lower() == "error"]
    whole = [choice for choice in choices if choice not in broken and not is_set(choice.get("error"))]
    answers = [choice for choice in whole if chat_content(choice, endpoint)]
    is_cut = any(cut_off(reason_of(choice)) for choice in whole)
    if answers:
        return Expected(mark="truncated" if is_cut else None, reason=reason_of(answers[0])), True
    if len(whole) < len(choices):
        return INVALID._replace(reason=reason_of(broken[0]) if broken else None), False
    for test, result in ((cut_off, Expected(mark="truncated")), (filtered, FILTERED)):
        for choice in whole:
            if test(reason_of(choice)):
                return result._replace(reason=reason_of(choice)), False
    return EMPTY._replace(reason=reason_of(whole[0]) if whole else None), False


def chat_content(choice: dict[str, Any], endpoint: str) -> bool:
    """Return True if the choice has content."""
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and any(isinstance(scores, list) and scores for scores in logprobs.values()):
        return True
    if endpoint == COMPLETIONS:
        return has_words(choice.get("text"))
    message = choice.get("message")
    if not isinstance(message, dict):
        return False
    if has_words(message.get("content")) or has_words(message.get("refusal")):
        return True
    for name in ("tool_calls", "images"):
        if isinstance(message.get(name), list) and any(isinstance(call, dict) for call in message[name]):
            return True
    return any(isinstance(message.get(name), dict) and message[name] for name in ("audio", "function_call"))


def judge_response(value: dict[str, Any]) -> tuple[Expected, bool]:
    """Return the judgement of a response."""
    status, output = value.get("status"), value.get("output")
    has_output = isinstance(output, list) and any(output_item(item) for item in output)
    if status == "incomplete":
        details = value.get("incomplete_details")
        reason = reason_of(details, "reason") if isinstance(details, dict) else None
        if filtered(reason):
            return (Expected(reason=reason), True) if has_output else (FILTERED._replace(reason=reason), False)
        return Expected(mark="truncated", reason=reason or "incomplete"), has_output
    if status is not None and status != "completed":
        return INVALID, False
    if output is None or output == []:
        return EMPTY, False
    if status is None or not isinstance(output, list):
        return INVALID, False
    return (Expected(reason="completed"), True) if has_output else (EMPTY._replace(reason="completed"), False)


def output_item(item: Any) -> bool:
    """Return True if the item of a response's output is an answer."""
    if not isinstance(item, dict) or not isinstance(item.get("type"), str) or item["type"] == "reasoning":
        return False
    return item["type"] != "message" or has_words(item.get("content"))


def judge_message(value: dict[str, Any]) -> tuple[Expected, bool]:
    """Return the judgement of Anthropic's message."""
    content, reason = value.get("content"), reason_of(value, "stop_reason")
    blocks = content if isinstance(content, list) else []
    for block in blocks:
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            continue
        if block["type"] in {"thinking", "redacted_thinking"}:
            continue
        if block["type"] != "text" or (isinstance(block.get("text"), str) and block["text"]):
            return Expected(mark="truncated" if cut_off(reason) else None, reason=reason), True
    if content is not None and not isinstance(content, list):
        return INVALID, False
    if cut_off(reason):
        return Expected(mark="truncated", reason=reason), False
    return (FILTERED if filtered(reason) else INVALID if reason == "error" else EMPTY)._replace(
        reason=reason
    ), False


def has_words(content: Any) -> bool:
    """Return True for a text, or parts of which one says something."""
    if not isinstance(content, list):
        return isinstance(content, str) and len(content) > 0
    for part in content:
        if isinstance(part, str) and part:
            return True
        if not isinstance(part, dict) or part.get("type") in ("thinking", "reasoning", "redacted_thinking"):
            continue
        said = [part[name] for name in ("text", "refusal") if name in part]
        if any(has_words(text) for text in said) or (part and not said):
            return True
    return False


def reason_of(holder: dict[str, Any], name: str = "finish_reason") -> str | None:
    """Return the finish reason if it is a text."""
    reason = holder.get(name)
    if isinstance(reason, dict):
        reason = reason.get("type")
    return reason[:100].encode(errors="replace").decode() if isinstance(reason, str) and reason else None


def cut_off(reason: str | None) -> bool:
    """Return True if a limit of tokens ended the answer."""
    return (reason or "").lower() in ("length", "max_tokens", "max_output_tokens")


def filtered(reason: str | None) -> bool:
    """Return True if a filter ended the answer."""
    return (reason or "").lower() in ("content_filter", "safety", "refusal")


def is_vector(vector: Any) -> bool:
    """Return True for finite numbers, or base64."""
    if isinstance(vector, str):
        try:
            return vector != "" and base64.b64encode(base64.b64decode(vector, validate=True)).decode() == vector
        except (binascii.Error, ValueError):
            return False
    if not isinstance(vector, list) or not vector:
        return False
    for number in vector:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return False
        if abs(number) > 1.7976931348623157e308 or math.isnan(number):
            return False
    return True


def is_set(error: Any) -> bool:
    """Return True for an error that says anything."""
    return error is not None and error is not False and error not in ({}, [], "", 0)


def error_in(value: Any) -> Any:
    """Return the error in a body without answer, the body itself if it is one, or None."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return None
    choices = value.get("choices") if isinstance(value.get("choices"), list) else []
    of_choices = [choice.get("error") for choice in choices if isinstance(choice, dict)]
    places = (value.get("error"), value.get("errors"), *of_choices, value.get("detail"))
    first = next((error for error in places if is_set(error)), None)
    if isinstance(first, list) and not is_detail_list(first):
        first = first[0]
    if first is not None:
        return first
    if (
        value.get("object") == "error"
        or value.get("type") == "error"
        or value.get("status") in ("failed", "error")
    ):
        return value
    return value if isinstance(value.get("message"), str) and is_set(value.get("code")) else None


def is_detail_list(errors: list[Any]) -> bool:
    """Return True for FastAPI's list of details."""
    return isinstance(errors[0], dict) and "msg" in errors[0]


def message_of(error: Any, body: dict[str, Any]) -> str:
    """Return the message of an error."""
    messages = [error.get("message") if isinstance(error, dict) else None, body.get("message"), error]
    if isinstance(error, dict):
        messages += [error.get(name) for name in ("detail", "msg", "error")]
    if isinstance(error, list):
        messages += [detail.get("msg") for detail in error if isinstance(detail, dict)]
    return next((text for text in messages if isinstance(text, str) and text.strip()), "")


def by_error(error: Any, body: dict[str, Any]) -> Expected:  # noqa: C901, PLR0911, PLR0912 - plain on purpose
    """Return the judgement of an error by its own codes."""
    holders = [error, body] if isinstance(error, dict) else [body]
    words, status = set(), None
    for holder in holders:
        for name in ("code", "type", "status", "reason"):
            word = holder.get(name)
            if isinstance(word, str):
                words.add(word.lower())
        for name in ("code", "status"):
            number = holder.get(name)
            if isinstance(number, str) and re.fullmatch("[0-9]{3}", number):
                number = int(number)
            if (
                status is None
                and isinstance(number, int)
                and not isinstance(number, bool)
                and 400 <= number <= 599
            ):
                status = number
    if status is None:
        status = max((STATUS[word] for word in words if word in STATUS), default=None)
    message = message_of(error, body)
    if status is None or status < 500:
        if "content_filter" in words:
            return FILTERED
        if status in (None, 400) and ("context_length_exceeded" in words or "maximum context length" in message):
            return Expected("context_length_exceeded", "never")
        if status == 402 or "insufficient_quota" in words:
            return Expected("rate_limited" if status == 429 else "invalid_request", "upstream_out", out="quota")
        if status in (None, 400, 403, 429) and "Insufficient credits" in message:
            return Expected("rate_limited" if status == 429 else "invalid_request", "upstream_out", out="quota")
        if status == 401:
            return Expected("invalid_request", "upstream_out", out="unauthorized")
    if status is None:
        return INVALID
    if status >= 500:
        return Expected("server_error", "as_status")
    if status == 429:
        return Expected("rate_limited", "as_status")
    return Expected("invalid_request", "never", out="unauthorized" if status == 403 else None)


def usage_of(endpoint: str, value: Any) -> tuple[int, int, int] | None:
    """Return the tokens that the body reports."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict):
        return None
    counts = {name: count for name, count in usage.items() if type(count) is int and 0 <= count <= 2**53}
    prompt, completion, total = (
        counts.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    if prompt is None and "input_tokens" in counts:
        prompt = counts["input_tokens"] + counts.get("cache_read_input_tokens", 0)
        prompt += counts.get("cache_creation_input_tokens", 0)
    if completion is None:
        completion = counts.get("output_tokens")
    if prompt is None and completion is None and total is None:
        return None
    if total is not None and prompt is not None:
        completion = max(completion or 0, total - prompt)
    elif total is not None and completion is not None:
        prompt = max(0, total - completion)
    prompt, completion = prompt or 0, completion or 0
    total = min(2**53, max(total or 0, prompt + completion))
    if endpoint == EMBEDDINGS and prompt == completion == 0:
        prompt = total
    return prompt, completion, total

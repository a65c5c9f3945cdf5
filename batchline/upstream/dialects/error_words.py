"""Finds the error in a decoded reply: its message, its words and the HTTP status that it names.

The forms are those of OpenAI and Anthropic (`error`), vLLM (`object: "error"`), FastAPI (`detail`), Gemini (a list
of errors), TGI (`error` as text), OpenRouter (`error.metadata`, `choices[0].error`), Azure (`error.innererror`),
MiniMax (`base_resp`).
"""

import html
import json
import re
from typing import Any, Final, NamedTuple

from batchline.models.outcomes import status_of_words

MAX_MESSAGE_CHARACTERS: Final = 500
MAX_EXCERPT_CHARACTERS: Final = 200
_MAX_SCANNED_BYTES: Final = 2**16
"""Bytes at the start of a page that are searched for its title."""

_MAX_DETAILS: Final = 5
"""Errors of a list that become part of the message."""

_WORD_MEMBERS: Final = ("code", "type", "status", "reason", "error_type", "error_code")
_STATUS_MEMBERS: Final = ("code", "status", "status_code", "error_code", "statusCode")
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_HEADING: Final = re.compile(r"<h1[^>]*>(.*?)</h1\s*>", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"<[^>]*>")
_PAGE_START: Final = re.compile(rb"\s*<(?:!doctype html|html|head|body|h1|center|title)\b", re.IGNORECASE)


class ErrorWords(NamedTuple):
    """An error's message, the words in its codes and types in lower case, and the HTTP status that it names."""

    message: str | None
    words: frozenset[str]
    status: int | None


NO_WORDS: Final = ErrorWords(None, frozenset(), None)


def read_error(value: object) -> ErrorWords:
    """Return what the decoded body of a reply that is not a 2xx says."""
    body = _first_of_list(value)
    if isinstance(body, str):
        return ErrorWords(clean_text(body, MAX_MESSAGE_CHARACTERS) or None, frozenset(), None)
    if not isinstance(body, dict):
        return NO_WORDS
    return _describe(body, _inner_error(body))


def find_error(value: object) -> ErrorWords | None:
    """Return the error inside a decoded 2xx body that has no answer, or None if it is not an error object."""
    body = _first_of_list(value)
    if not isinstance(body, dict):
        return None
    inner = _inner_error(body)
    if inner is None and not _is_error_object(body):
        return None
    return _describe(body, inner)


def has_error(value: object) -> bool:
    """Return True if a member `error` reports one; some servers send an empty one with each success."""
    return value is not None and value is not False and value not in ({}, [], "", 0)


def excerpt(body: bytes) -> str:
    """Return the start of a body that has no message: the title of an HTML page, else the first 200 characters."""
    text = body[:_MAX_SCANNED_BYTES].decode(errors="replace")
    if _PAGE_START.match(body):
        title = next((match[1] for pattern in (_TITLE, _HEADING) if (match := pattern.search(text))), None)
        if title and (title := clean_text(html.unescape(_TAG.sub(" ", title)), MAX_EXCERPT_CHARACTERS)):
            return f"HTML page {title!r}"
    return clean_text(text, MAX_EXCERPT_CHARACTERS)


def clean_text(text: str, max_characters: int) -> str:
    """Return the text on one line, shortened, without lone surrogates."""
    # Cut before splitting: the text may have megabytes.
    words = " ".join(text[: max_characters * 8].split())
    return words[:max_characters].encode(errors="replace").decode()


def _first_of_list(value: object) -> object:
    """Return the first item of a list (Gemini answers with a list of one error object), else the value."""
    return value[0] if isinstance(value, list) and value else value


def _inner_error(body: dict[str, Any]) -> object:
    """Return the error that the body contains, or None."""
    members = (body.get("error"), body.get("errors"), _choice_error(body), body.get("detail"), _status_error(body))
    for member in members:
        if has_error(member):
            return _first_of_list(member) if isinstance(member, list) and not _is_detail_list(member) else member
    return None


def _choice_error(body: dict[str, Any]) -> object:
    choices = body.get("choices")
    if not isinstance(choices, list):
        return None
    return next(
        (choice["error"] for choice in choices if isinstance(choice, dict) and has_error(choice.get("error"))),
        None,
    )


def _status_error(body: dict[str, Any]) -> object:
    """Return MiniMax's `base_resp` if it reports an error; each answer has one."""
    status = body.get("base_resp")
    return status if isinstance(status, dict) and has_error(status.get("status_code")) else None


def _is_error_object(body: dict[str, Any]) -> bool:
    """Return True if the body itself is an error, by `object`, `type` or `status`, or by a code and a message."""
    return (
        body.get("object") == "error"
        or body.get("type") == "error"
        or body.get("status") in ("failed", "error")  # not a set: the value may be unhashable
        or (isinstance(body.get("message"), str) and has_error(body.get("code")))
    )


def _describe(body: dict[str, Any], inner: object) -> ErrorWords:
    """Return the words of the body and of the error inside it."""
    parts = [body]
    message = None
    if isinstance(inner, dict):
        parts = [
            inner,
            *(member for name in ("innererror", "metadata") if isinstance(member := inner.get(name), dict)),
            body,
        ]
        message = _text(inner.get("message"))
    message = message or _text(body.get("message")) or _inner_text(inner) or _text(body.get("msg"))
    if message and message.startswith("{") and (nested := _nested_error(message)) is not None:
        # Gemini's faces pass another server's whole error on as the message.
        return nested
    words = frozenset(
        word.lower() for part in parts for name in _WORD_MEMBERS if isinstance(word := part.get(name), str)
    )
    if isinstance(metadata := isinstance(inner, dict) and inner.get("metadata"), dict) and metadata.get("reasons"):
        words |= {"moderation_blocked"}  # OpenRouter says so in no other way
    return ErrorWords(
        clean_text(message, MAX_MESSAGE_CHARACTERS) if message else None,
        words,
        next((status for part in parts if (status := _named_status(part)) is not None), None)
        or status_of_words(words),
    )


def _named_status(part: dict[str, Any]) -> int | None:
    """Return the HTTP status of an error that a member names as a number, or None."""
    for name in _STATUS_MEMBERS:
        number = part.get(name)
        if isinstance(number, str) and len(number) == 3 and number.isascii() and number.isdigit():
            number = int(number)
        if type(number) is int and 400 <= number < 600:
            return number
    return None


def _nested_error(message: str) -> ErrorWords | None:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return None
    nested = find_error(value)
    return nested if nested is not None and nested.message else None


def _is_detail_list(members: list[Any]) -> bool:
    """Return True for FastAPI's list of validation errors."""
    return isinstance(members[0], dict) and "msg" in members[0]


def _inner_text(inner: object) -> str | None:
    """Return the message of an error that is a text, FastAPI's list of details, or an object without `message`."""
    if isinstance(inner, list):
        texts = (_detail_text(member) for member in inner[:_MAX_DETAILS])
        return "; ".join(text for text in texts if text) or None
    if isinstance(inner, dict):
        return next(
            (text for name in ("detail", "msg", "error", "status_msg") if (text := _text(inner.get(name)))), None
        )
    return _text(inner)


def _detail_text(member: object) -> str | None:
    """Return one of FastAPI's validation errors: `body.max_tokens: Input should be greater than 0`."""
    if not isinstance(member, dict):
        return _text(member)
    message = _text(member.get("msg")) or _text(member.get("message"))
    location = member.get("loc")
    if message and isinstance(location, list) and location:
        return f"{'.'.join(str(step) for step in location[:20] if isinstance(step, str | int))}: {message}"
    return message


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None

"""Extract readable text from request and response bodies of any shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

MAX_CHARACTERS: Final = 20_000
"""Maximum length of each text, so that a page of results stays small."""


_ENCODER = json.JSONEncoder(ensure_ascii=False, indent=2)


class MessageText(NamedTuple):
    """A text with its role, or the name of the field that holds it."""

    role: str
    text: str
    is_truncated: bool


def request_messages(body: Any) -> list[MessageText]:
    """Return the texts of a request; empty if the shape of the body is unknown."""
    return [_truncate_text(role, text) for role, text in _find_request_texts(body)]


def response_messages(body: Any) -> list[MessageText]:
    """Return the texts of a response; empty if the shape of the body is unknown."""
    return [_truncate_text(role, text) for role, text in _find_response_texts(body)]


def pretty_json(value: Any) -> MessageText:
    """Return the value as indented JSON, up to the maximum shown."""
    text = ""
    for fragment in _ENCODER.iterencode(value):  # stops early: a body may be far longer than the text shown
        text += fragment
        if len(text) > MAX_CHARACTERS:
            break
    return _truncate_text("", text)


def json_start(text: bytes) -> MessageText:
    """Return the start of a JSON text that is too long to be parsed."""
    # UTF-8 has up to 4 bytes per character; one more shows that it is truncated.
    return _truncate_text("", text[: 4 * MAX_CHARACTERS + 4].decode(errors="replace"))


def _truncate_text(role: str, text: str) -> MessageText:
    return MessageText(role, text[:MAX_CHARACTERS], len(text) > MAX_CHARACTERS)


def _find_request_texts(body: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(body, dict):
        return
    for name in ("instructions", "system"):
        if text := _content_text(body.get(name)):
            yield "system", text
    for message in _select_dicts(body.get("messages")):
        yield _message_role(message), _content_text(message.get("content"))
    input_value = body.get("input")
    if isinstance(input_value, list) and any(isinstance(item, dict) and "role" in item for item in input_value):
        for message in _select_dicts(input_value):
            yield _message_role(message), _content_text(message.get("content"))
    elif text := _content_text(input_value):
        yield "input", text
    if text := _content_text(body.get("prompt")):
        yield "prompt", text


def _find_response_texts(body: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(body, dict):
        if isinstance(body, str) and body:
            yield "answer", body
        return
    for choice in _select_dicts(body.get("choices")):
        message = choice.get("message")
        yield from _find_message_texts(message if isinstance(message, dict) else {"content": choice.get("text")})
    for item in _select_dicts(body.get("output")):
        yield from _find_message_texts(item)
    if text := _content_text(body.get("content")):
        yield "assistant", text
    for item in _select_dicts(body.get("data")):
        numbers = item.get("embedding")
        if isinstance(numbers, list | str):
            yield "embedding", f"{len(numbers):,} numbers" if isinstance(numbers, list) else "as base64"
    for item in _select_dicts(body.get("results")):
        if "flagged" in item:
            yield "moderation", "flagged" if item["flagged"] else "not flagged"


def _find_message_texts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, role in (
        ("reasoning_content", "reasoning"),
        ("content", _message_role(message, "assistant")),
        ("refusal", "refusal"),
    ):
        if text := _content_text(message.get(name)):
            yield role, text
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        yield "tool calls", json.dumps(calls, ensure_ascii=False)


def _message_role(message: dict[str, Any], default: str = "message") -> str:
    role = message.get("role")
    return role if isinstance(role, str) and role else default


def _select_dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _content_text(content: Any) -> str:
    """Return the text of a content: a string, or a list of strings and parts, some without text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(_part_text, content)))
    return ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    return f"[{part['type']}]" if isinstance(part.get("type"), str) else ""

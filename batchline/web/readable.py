"""What a request asks and what was answered, as a person reads it: the texts out of bodies of any shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

MOST_LETTERS: Final = 20_000
"""Of each text; a page of results stays a page."""


_ENCODER = json.JSONEncoder(ensure_ascii=False, indent=2)


class Said(NamedTuple):
    """A text, and whose it is: a role, or the name of what holds it."""

    who: str
    text: str
    is_cut: bool


def asked_in(body: Any) -> list[Said]:
    """What the request asks; nothing where that cannot be told."""
    return [_said(who, text) for who, text in _asked(body)]


def answered_in(body: Any) -> list[Said]:
    """What was answered; nothing where that cannot be told."""
    return [_said(who, text) for who, text in _answered(body)]


def raw(value: Any) -> Said:
    """The whole as JSON, as far as it is shown."""
    text = ""
    for piece in _ENCODER.iterencode(value):
        text += piece
        if len(text) > MOST_LETTERS:
            break
    return _said("", text)


def start_of(text: bytes) -> Said:
    """The beginning of a JSON text that is too long to be laid out."""
    return _said("", text[: 4 * MOST_LETTERS + 4].decode(errors="replace"))


def _said(who: str, text: str) -> Said:
    return Said(who, text[:MOST_LETTERS], len(text) > MOST_LETTERS)


def _asked(body: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(body, dict):
        return
    for name in ("instructions", "system"):
        if text := _text(body.get(name)):
            yield "system", text
    for message in _objects(body.get("messages")):
        yield _role(message), _text(message.get("content"))
    given = body.get("input")
    if isinstance(given, list) and any(isinstance(item, dict) and "role" in item for item in given):
        for message in _objects(given):
            yield _role(message), _text(message.get("content"))
    elif text := _text(given):
        yield "input", text
    if text := _text(body.get("prompt")):
        yield "prompt", text


def _answered(body: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(body, dict):
        if isinstance(body, str) and body:
            yield "answer", body
        return
    for choice in _objects(body.get("choices")):
        message = choice.get("message")
        yield from _of_message(message if isinstance(message, dict) else {"content": choice.get("text")})
    for item in _objects(body.get("output")):
        yield from _of_message(item)
    if text := _text(body.get("content")):
        yield "assistant", text
    for item in _objects(body.get("data")):
        numbers = item.get("embedding")
        if isinstance(numbers, list | str):
            yield "embedding", f"{len(numbers):,} numbers" if isinstance(numbers, list) else "as base64"
    for item in _objects(body.get("results")):
        if "flagged" in item:
            yield "moderation", "flagged" if item["flagged"] else "not flagged"


def _of_message(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, who in (
        ("reasoning_content", "reasoning"),
        ("content", _role(message, "assistant")),
        ("refusal", "refusal"),
    ):
        if text := _text(message.get(name)):
            yield who, text
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        yield "tool calls", json.dumps(calls, ensure_ascii=False)


def _role(message: dict[str, Any], otherwise: str = "message") -> str:
    role = message.get("role")
    return role if isinstance(role, str) and role else otherwise


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(content: Any) -> str:
    """The text of a content: one text, some of them, or parts of which some are no text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(_part, content)))
    return ""


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    return f"[{part['type']}]" if isinstance(part.get("type"), str) else ""

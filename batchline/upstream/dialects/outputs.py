"""Finds the structured output in a successful body and checks it against the schema that the request asked for."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from batchline.models.schema_check import (
    RequestedSchema,
    compile_schema,
    find_text_violation,
    find_value_violation,
)

_decode = msgspec.json.Decoder().decode


def find_violation(endpoint: str, requested: RequestedSchema, body: bytes) -> str | None:
    """Return the first violation of the schema by the answer, with its path; None if it fits or cannot be checked.

    Each choice is checked. Refusals and calls of tools, which come instead of the output, are not.
    """
    if compile_schema(requested.schema) is None:
        return None
    try:
        value = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        value = json.loads(body)  # lone surrogates: the body was judged and is JSON
    if not isinstance(value, dict):
        return None
    if requested.tool is not None:
        return _find_tool_violation(requested, value)
    texts = _texts(endpoint, value)
    return next(
        (found for text in texts if (found := find_text_violation(requested.schema, text)) is not None), None
    )


def _find_tool_violation(requested: RequestedSchema, body: dict[str, Any]) -> str | None:
    """Return the first violation by the inputs of the tool that had to be called."""
    blocks = _objects(body.get("content"))
    calls = [block for block in blocks if block.get("type") == "tool_use" and block.get("name") == requested.tool]
    if not calls:
        return f"$: the answer does not call the tool {requested.tool!r}"
    violations = (find_value_violation(requested.schema, call.get("input")) for call in calls)
    return next((found for found in violations if found is not None), None)


def _texts(endpoint: str, body: dict[str, Any]) -> Iterator[str]:
    """Yield the texts of the answer."""
    if endpoint == "/v1/chat/completions":
        for choice in _objects(body.get("choices")):
            message = choice.get("message")
            if isinstance(message, dict) and not message.get("refusal"):
                yield from _joined(message.get("content"))
    elif endpoint == "/v1/completions":
        for choice in _objects(body.get("choices")):
            yield from _joined(choice.get("text"))
    elif endpoint == "/v1/responses":
        for item in _objects(body.get("output")):
            if item.get("type") == "message":
                yield from _joined(item.get("content"))
    elif endpoint == "/v1/messages":
        yield from _joined(body.get("content"))


def _joined(content: object) -> Iterator[str]:
    """Yield the text of a content, which may be in parts; nothing if it has none."""
    if isinstance(content, list):
        parts = (part.get("text") for part in _objects(content) if part.get("type") in ("text", "output_text"))
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str) and content:
        yield content


def _objects(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []

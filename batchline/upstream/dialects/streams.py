"""Puts the events of a streamed answer together into the body of an answer that was not streamed.

The bodies are equal as JSON, but for ids, creation times, fingerprints and null members. An `error` event becomes
the body: it is judged by its own code. Sources: API references of OpenAI (chat, completions and responses
streaming) and Anthropic (streaming messages).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from batchline.models.base import dump_json_text
from batchline.models.json_scan import NotJSONError, read_members, require_json
from batchline.upstream.dialects.error_words import has_error
from batchline.upstream.dialects.framing import BLANKS, Event, split_events

Json = dict[str, Any]

_REPLACED: Final = frozenset({"index", "type", "id", "role", "name"})
"""Members of a delta that are sent whole, by some servers with every event."""

_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


MAX_INDEXED_ITEMS: Final = 1_000
"""Tool calls of one choice: each of their pieces is looked up among them."""


class _Pieces(list[str]):
    """The pieces of a text."""


class BrokenStream(ValueError):
    """The events are no complete answer; the text goes on after "a stream of events"."""


def join_events(endpoint: str, text: bytes) -> bytes:
    """Return the JSON body that the events stand for, empty if they have no data; raises `BrokenStream`."""
    events, is_done = split_events(text)
    if not events:
        return b""
    if len(events) == 1 and not events[0].data.lstrip(BLANKS).startswith(b"{"):
        return events[0].data.strip(BLANKS)
    values = [_decode_event(event) for event in events]
    for event, value in zip(events, values, strict=True):
        if event.name == "error" or value.get("type") == "error" or has_error(value.get("error")):
            return _as_error(event.data, value)
    if len(events) == 1 and _is_whole(values[0]):
        return events[0].data
    if endpoint == "/v1/responses":
        return _response_of(events, values)
    if (joiner := _JOINERS.get(endpoint)) is None:
        raise BrokenStream(f"with {len(events)} events, and this endpoint has no stream")
    try:
        body = _with_joined_texts(joiner(values, is_done))
    except BrokenStream:
        raise
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError):
        raise BrokenStream("whose pieces do not fit together") from None
    return dump_json_text(body).encode()


def _decode_event(event: Event) -> Json:
    try:
        require_json(event.data)
        value = json.loads(event.data)
    except (NotJSONError, ValueError, RecursionError):
        raise BrokenStream("of which one is not JSON") from None
    if not isinstance(value, dict):
        raise BrokenStream("of which one is not an object")
    return value


def _as_error(data: bytes, value: Json) -> bytes:
    """Return the body of an error event, whose data may be the error itself."""
    if has_error(value.get("error")) or value.get("type") == "error":
        return data
    return b'{"error":' + data + b"}"


def _is_whole(value: Json) -> bool:
    """Return True for the data of an event that is a whole answer and not a piece of one."""
    choices = value.get("choices")
    if isinstance(choices, list):
        return not any(isinstance(choice, dict) and "delta" in choice for choice in choices)
    kind = value.get("type")
    return not isinstance(kind, str) or not ("." in kind or kind.startswith(("message_", "content_block_")))


def _response_of(events: list[Event], values: list[Json]) -> bytes:
    """Return the bytes of the response in the last event."""
    for event, value in zip(reversed(events), reversed(values), strict=True):
        if value.get("type", event.name) in _RESPONSE_ENDS and isinstance(value.get("response"), dict):
            return read_members(event.data, "response")["response"]
    raise BrokenStream("that ended before the response was complete")


def _join_chat(chunks: list[Json], is_done: bool) -> Json:
    body, choices = _join_envelope(chunks, is_done, _add_chat_piece)
    for choice in choices:
        message = choice.setdefault("message", {})
        message.setdefault("role", "assistant")
        message.setdefault("content", None)
        for call in message.get("tool_calls") or ():
            call.pop("index", None)  # tells pieces apart; whole calls have none
    return body | {"object": "chat.completion", "choices": choices}


def _join_completion(chunks: list[Json], is_done: bool) -> Json:
    body, choices = _join_envelope(chunks, is_done, _add_text_piece)
    return body | {"choices": choices}


def _join_envelope(
    chunks: list[Json],
    is_done: bool,
    add_piece: Callable[[Json, Json], None],
) -> tuple[Json, list[Json]]:
    """Return the members beside the choices, of the last chunk that has them, and the choices in order."""
    body: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name != "choices" and (value is not None or name not in body):
                body[name] = value
        for piece in chunk.get("choices") or ():
            choice = choices.setdefault(
                piece.get("index", 0), {"index": piece.get("index", 0), "finish_reason": None}
            )
            add_piece(choice, piece)
    # Some servers end without `[DONE]`, others without a finish reason: one of the two shows that nothing is
    # missing.
    if not is_done and not (choices and all(choice["finish_reason"] for choice in choices.values())):
        raise BrokenStream("that ended before the answer was complete")
    return body, [choices[index] for index in sorted(choices)]


def _add_chat_piece(choice: Json, piece: Json) -> None:
    for name, value in piece.items():
        if value is None or name == "index":
            continue
        if name in {"delta", "message"}:
            _merge(choice.setdefault("message", {}), value)
        elif name == "logprobs":
            choice["logprobs"] = _merge(choice.get("logprobs") or {}, value)
        else:
            choice[name] = value


def _add_text_piece(choice: Json, piece: Json) -> None:
    for name, value in piece.items():
        if value is None or name == "index":
            continue
        if name == "text":
            _append(choice, name, value)
        elif name == "logprobs":
            choice["logprobs"] = _merge(choice.get("logprobs") or {}, value)
        else:
            choice[name] = value


def _merge(whole: Json, piece: Json) -> Json:
    """Add a piece to an object: texts and lists are appended to, objects merged, other values replaced."""
    for name, value in piece.items():
        known = whole.get(name)
        if value is None or (name in _REPLACED and known and not value):
            continue
        if isinstance(value, list):
            whole[name] = _extend(known or [], value)
        elif isinstance(value, str) and name not in _REPLACED:
            _append(whole, name, value)
        elif isinstance(value, dict):
            whole[name] = _merge(known or {}, value)
        else:
            whole[name] = value
    return whole


def _append(whole: Json, name: str, text: str) -> None:
    """Append to a text. Its pieces are joined at the end: joining each would take quadratic time."""
    if not isinstance(text, str):
        raise TypeError(name)
    whole.setdefault(name, _Pieces()).append(text)


def _extend(items: list[Any], pieces: list[Any]) -> list[Any]:
    """Append the pieces; one with the `index` of an item is merged into that."""
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        same = None if index is None else next((item for item in items if item.get("index") == index), None)
        if same is not None:
            _merge(same, piece)
        elif index is None:
            items.append(piece)
        elif len(items) < MAX_INDEXED_ITEMS:
            items.append(_merge({}, piece))
        else:
            raise BrokenStream(f"with a list of over {MAX_INDEXED_ITEMS:,} items")
    return items


def _with_joined_texts(value: Any) -> Any:
    """Return the value with the pieces of each text joined."""
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _with_joined_texts(member) for name, member in value.items()}
    return [_with_joined_texts(item) for item in value] if isinstance(value, list) else value


def _join_message(events: list[Json], is_done: bool) -> Json:
    """Return Anthropic's message: `message_start` with the blocks and the last usage."""
    message: Json = {}
    blocks: dict[int, Json] = {}
    for event in events:
        is_done = _add_event(message, blocks, event) or is_done
    if not message or not (is_done or message.get("stop_reason")):
        raise BrokenStream("that ended before the message was complete")
    return message | {"content": [blocks[index] for index in sorted(blocks)]}


def _add_event(message: Json, blocks: dict[int, Json], event: Json) -> bool:
    """Add an event to the message and its blocks; return True for the last one."""
    match event.get("type"):
        case "message_start":
            message.update(event["message"])
        case "content_block_start":
            blocks[event["index"]] = _merge({}, event["content_block"])
        case "content_block_delta":
            _add_block_delta(blocks[event["index"]], event["delta"])
        case "content_block_stop":
            if text := "".join(blocks[event["index"]].pop("partial_json", ())):
                blocks[event["index"]]["input"] = json.loads(text)
        case "message_delta":
            message.update({name: value for name, value in event["delta"].items() if value is not None})
            usage = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
            message["usage"] = (message.get("usage") or {}) | usage
        case "message_stop":
            return True
    return False


def _add_block_delta(block: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "citation":
            block["citations"] = [*(block.get("citations") or []), value]
        elif name != "type" and value is not None:
            _append(block, name, value)


_JOINERS: Final[Mapping[str, Callable[[list[Json], bool], Json]]] = {
    "/v1/chat/completions": _join_chat,
    "/v1/completions": _join_completion,
    "/v1/messages": _join_message,
}

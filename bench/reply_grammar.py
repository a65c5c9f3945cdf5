"""Makes bodies of 2xx replies: from a grammar of each dialect, mutated, and framed as some servers do."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
EMBEDDINGS: Final = "/v1/embeddings"
MODERATIONS: Final = "/v1/moderations"


class Reply(NamedTuple):
    """A made-up 2xx reply; `text` is the JSON, or what should be, inside the frame of `body`."""

    endpoint: str
    inputs: int
    body: bytes
    text: bytes


WORDS: Final = (
    "rate_limit_exceeded",
    "server_error",
    "overloaded_error",
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "insufficient_quota",
    "content_filter",
    "context_length_exceeded",
    "strange",
)
SAYINGS: Final = ("it did not work", "This model's maximum context length is 9 tokens", "Insufficient credits", "")
REASONS: Final = (
    *("stop",) * 6,
    *("length",) * 2,
    "content_filter",
    "tool_calls",
    "SAFETY",
    "MAX_TOKENS",
    "error",
    "eos_token",
    "",
    None,
    7,
)
TEXTS: Final = (
    "Yes.",
    "No",
    "Größe \u2028 ☃",
    "a \\ud800 b",
    '{"a": [1]}',
    "data: [DONE]",
    " ",
    "\ud800",
    "x" * 300,
)
JUNK: Final = (
    None,
    "",
    "x",
    [],
    {},
    0,
    7,
    -1,
    2**60,
    1.5,
    True,
    False,
    [None],
    [""],
    {"text": ""},
    {"text": "x"},
    {"code": 500},
    float("inf"),
)
NAMES: Final = (
    *("choices", "message", "content", "finish_reason", "error", "usage", "status", "output", "data", "embedding"),
    *("results", "text", "type", "stop_reason", "code", "detail", "logprobs", "tool_calls", "refusal", "model"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "incomplete_details"),
)
RAW_JUNK: Final = (
    b"null",
    b"[]",
    b"{}",
    b'""',
    b'"x"',
    b"3",
    b"-0",
    b"1e999",
    b"true",
    b'{"message":"m"}',
    b"[{}]",
)
DEEP: Final = tuple(b"[" * depth + b"]" * depth for depth in (500, 509, 520, 1_200))
LONG: Final = (b"9" * 4_300, b"9" * 4_301, b"0." + b"1" * 5_000)


def make_reply(random: Random) -> Reply:
    """Return the next reply; most are whole, mutated in up to three places."""
    endpoint = random.choices(
        (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, MODERATIONS), (6, 2, 3, 3, 2, 1)
    )[0]
    inputs = random.choice((1, 1, 2, 3))
    value = _ENDPOINTS[endpoint](random, inputs)
    if random.random() < 0.1:
        value = _error_body(random, value)
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        value = _mutate(random, value)
    text = _to_text(random, value)
    if random.random() < 0.15:
        text = _mutate_text(random, text)
    return Reply(endpoint, inputs, _frame(random, text), text)


def _chat(random: Random, _: int) -> Any:
    return _envelope(random, choices=[_chat_choice(random) for _ in range(random.choice((1, 1, 1, 1, 2)))])


def _chat_choice(random: Random) -> Any:
    message: dict[str, Any] = {"role": "assistant", "content": random.choice(TEXTS)}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": random.choice(REASONS)}
    kind = random.randrange(16)
    if kind == 0:
        message["content"] = random.choice((None, "", [], [{"type": "text", "text": random.choice(("", "Yes."))}]))
    elif kind == 1:
        message |= {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}
    elif kind == 2:
        message |= {"content": None, "refusal": random.choice(("No.", "", None))}
    elif kind == 3:
        message |= {"content": None, "reasoning_content": "hm"}
    elif kind == 4:
        message |= {
            "content": None,
            random.choice(("audio", "function_call")): random.choice(({"id": "a"}, {}, None)),
        }
    elif kind == 5:
        message["content"] = ""
        choice["logprobs"] = random.choice(
            ({"content": [{"token": "a"}]}, {"content": []}, {"content": None}, None)
        )
    elif kind == 6:
        choice["error"] = random.choice((None, {}, _error(random)))
    elif kind == 7:
        message["content"] = [{"type": random.choice(("thinking", "text")), "text": "x"}, _junk(random)]
    return choice


def _completion(random: Random, _: int) -> Any:
    choice = {"index": 0, "text": random.choice((*TEXTS, "")), "finish_reason": random.choice(REASONS)}
    if random.random() < 0.2:
        choice["logprobs"] = random.choice(({"tokens": ["a"]}, {"tokens": []}, None))
    return _envelope(random, choices=[choice])


def _response(random: Random, _: int) -> Any:
    parts = [{"type": "output_text", "text": random.choice((*TEXTS, ""))}]
    if random.random() < 0.1:
        parts = [{"type": "refusal", "refusal": random.choice(("No.", ""))}]
    output: list[Any] = [{"type": "message", "role": "assistant", "content": parts}]
    if random.random() < 0.3:
        output.insert(0, {"type": "reasoning", "summary": []})
    if random.random() < 0.1:
        output = [{"type": random.choice(("function_call", "reasoning", "web_search_call"))}]
    status = random.choices(("completed", "incomplete", "failed", "queued", None), (12, 3, 2, 1, 1))[0]
    body = _envelope(random, status=status, error=None, output=output)
    if status == "incomplete":
        body["incomplete_details"] = random.choice(
            ({"reason": "max_output_tokens"}, {"reason": "content_filter"}, {}, None)
        )
    if status == "failed":
        body["error"] = random.choice((_error(random), None))
    return body


def _message(random: Random, _: int) -> Any:
    blocks = [
        {"type": "text", "text": random.choice((*TEXTS, ""))},
        {"type": "thinking", "thinking": "hm"},
        {"type": "tool_use", "name": "f", "input": {}},
    ]
    content = [random.choice(blocks) for _ in range(random.choice((0, 1, 1, 1, 2)))]
    reason = random.choice(("end_turn", "end_turn", "max_tokens", "tool_use", "stop_sequence", "refusal", None))
    return _envelope(random, type="message", content=content, stop_reason=reason)


def _embedding(random: Random, inputs: int) -> Any:
    count = inputs if random.random() < 0.9 else random.randrange(4)
    vectors: tuple[Any, ...] = (
        [0.25, -1e-5, 3],
        [1],
        "AACAPwAA",
        "AAA=",
        [],
        [0.5, None],
        "no base64!",
        [[1.0]],
        [10**400],
    )
    weights = (8, 8, 4, 4, 1, 1, 1, 1, 1)
    data = [{"index": index, "embedding": random.choices(vectors, weights)[0]} for index in range(count)]
    return _envelope(random, object="list", data=data)


def _moderation(random: Random, _: int) -> Any:
    return _envelope(
        random, results=random.choice(([{"flagged": False}], [{"flagged": True}, None], [], [None], None))
    )


def _envelope(random: Random, **members: Any) -> dict[str, Any]:
    body = {"id": "a", "created": 1, "model": random.choice(("m", "m", "", None, "größe"))} | members
    if random.random() < 0.85:
        body["usage"] = _usage(random)
    items = list(body.items())
    if random.random() < 0.2:
        random.shuffle(items)
    return dict(items)


def _usage(random: Random) -> Any:
    prompt, completion, thoughts = random.randrange(99), random.randrange(99), random.choice((0, 0, 0, 50))
    usage: dict[str, Any] = {
        random.choice(("prompt_tokens", "prompt_tokens", "input_tokens")): prompt,
        random.choice(("completion_tokens", "completion_tokens", "output_tokens")): completion,
    }
    if random.random() < 0.8:
        usage["total_tokens"] = prompt + completion + thoughts
    if random.random() < 0.3:
        usage["completion_tokens_details"] = {"reasoning_tokens": random.choice((completion, None, "4"))}
    if random.random() < 0.2:
        usage["cache_read_input_tokens"] = random.randrange(9)
    if random.random() < 0.1:
        usage[random.choice(list(usage))] = random.choice((None, "3", 2.0, -4, 2**53, 2**53 + 1, 10**30, True))
    return random.choice((None, usage, usage, usage, usage))


def _error(random: Random) -> Any:
    code = random.choice((*WORDS, 400, 401, 402, 403, 404, 429, "429", 500, 503, "x", None, 1301))
    error = {"message": random.choice(SAYINGS), "code": code}
    if random.random() < 0.5:
        error["type"] = random.choice((*WORDS, None))
    return error


def _error_body(random: Random, answer: dict[str, Any]) -> Any:
    """Return an error inside a 2xx, with or without the members of an answer beside it."""
    error = _error(random)
    form = random.randrange(9)
    if form < 3:
        return {"error": error} | (answer if random.random() < 0.3 else {})
    if form == 3:
        return error | {"object": "error"}
    if form == 4:
        return error
    if form == 5:
        return [{"error": error}]
    if form == 6:
        return {"detail": random.choice(("not found", [{"loc": ["body"], "msg": "bad"}], "", []))}
    if form == 7:
        return {"type": "error", "error": error}
    return random.choice(
        ({"error": "it broke"}, {"error": True}, {"errors": [error]}, {"error": []}, {"error": ""})
    )


def _mutate(random: Random, value: Any) -> Any:
    """Return the value changed in one place, chosen by a walk from the root."""
    node, parent, key = value, None, None
    while isinstance(node, dict | list) and node and random.random() < 0.75:
        parent, key = node, random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        node = node[key]
    if parent is None:
        return _junk(random) if random.random() < 0.2 else value
    change = random.randrange(4)
    if change == 0 or not isinstance(parent, dict):
        parent[key] = _junk(random)
    elif change == 1:
        del parent[key]
    elif change == 2:
        parent[random.choice(NAMES)] = _junk(random)
    else:
        parent[random.choice(NAMES)] = parent.pop(key)
    return value


def _junk(random: Random) -> Any:
    return deepcopy(random.choice(JUNK))  # it may be mutated


def _to_text(random: Random, value: Any) -> bytes:
    """Return the value as JSON; infinity is written as a number that no float can hold."""
    style = random.randrange(5)
    text = json.dumps(
        value,
        ensure_ascii=style != 1,
        indent=1 if style == 2 else None,
        separators=(",", ":") if style == 3 else None,
    )
    if style == 4:
        text = f" \t{text}  "
    return text.replace("Infinity", "1e999").encode(errors="surrogatepass")


def _mutate_text(random: Random, text: bytes) -> bytes:
    """Return the text with a fault in its bytes, or with a key a second time."""
    place = random.randrange(1, len(text)) if len(text) > 1 else 1
    form = random.randrange(9)
    if form == 0:
        return text[:place]
    if form == 1:
        return text[:place] + bytes([random.randrange(256)]) + text[place + 1 :]
    if form == 2:
        return text + random.choice((b"}", b"{}", b"\x00", b"x", b"\n\n", b" "))
    if form == 3:
        return re.sub(rb"\d+", random.choice((b"NaN", b"-Infinity", b"01", b"+1", b".5", b"1.")), text, count=1)
    if form == 4:
        return random.choice(
            (b"", b" \n", b"<html><title>x</title></html>", b"OK", b"null", b"[]", b"{}", b'""', b"3")
        )
    name = json.dumps(random.choice(NAMES)).encode()
    junk = random.choice((*RAW_JUNK, *RAW_JUNK, *DEEP, *LONG))
    braces = [match.start() for match in re.finditer(rb"\{|\}", text)]
    if not braces:
        return text
    brace = random.choice(braces)
    if text[brace : brace + 1] == b"{":
        comma = b"" if re.match(rb"\{\s*\}", text[brace:]) else b","
        return text[: brace + 1] + name + b":" + junk + comma + text[brace + 1 :]
    comma = b"" if re.search(rb"\{\s*$", text[:brace]) else b","
    return text[:brace] + comma + name + b":" + junk + text[brace:]


def _frame(random: Random, text: bytes) -> bytes:
    """Return the text as some servers send it."""
    form = random.randrange(40)
    if form == 0:
        return b"\xef\xbb\xbf" + text
    if form == 1:
        return b": PROCESSING\n\n\r\n: PROCESSING\n" + text
    if form == 2:
        return text + b"\n\ndata: [DONE]\n\n"
    if form == 3 and b"\n" not in text and b"\r" not in text and text.strip():
        return b"data: " + text + b"\n\ndata: [DONE]\n\n"
    return text


_ENDPOINTS: Final[dict[str, Callable[[Random, int], Any]]] = {
    CHAT: _chat,
    COMPLETIONS: _completion,
    RESPONSES: _response,
    MESSAGES: _message,
    EMBEDDINGS: _embedding,
    MODERATIONS: _moderation,
}

"""Answers of the simulator: plausible text, with usage computed from the request's text.

A token is four bytes of UTF-8, rounded up, in the texts of the request and of the answer; a number in place of a
token id is one token. The shapes are those that the official Python clients' types require.
"""

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Annotated, Any

import msgspec

DEFAULT_DIMENSIONS = 16
"""Length of an embedding if the request sets none."""

MODERATION_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)
"""Names of moderation categories in OpenAI's API."""

_FILLER_TEXT = (
    "the request was read and an answer follows in plain words so that a person may see what a model would say "
    "here about the matter at hand with some care for detail and order before the next step is taken "
)


class SimulatedRequest(msgspec.Struct):
    """The fields of a request body that the simulator reads."""

    model: str = "stand-in"
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    instructions: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    encoding_format: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


class SimulatedReply(msgspec.Struct):
    """An answer's JSON, and the token counts in its usage."""

    body: bytes
    prompt_tokens: int
    completion_tokens: int


_decode = msgspec.json.Decoder(SimulatedRequest).decode


def decode_request(body: bytes) -> SimulatedRequest:
    """Return the fields of a body; raises `ValueError` or `RecursionError` for an invalid one."""
    try:
        return _decode(body)
    except msgspec.DecodeError:
        # Escaped lone surrogates, which msgspec rejects and most servers accept.
        return _decode(json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace"))


def render_reply(path: str, request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply | None:
    """Return the answer to a request on that path, or None if the path is not served."""
    renderer = _RENDERERS.get(path)
    return None if renderer is None else renderer(request, ordinal, answer_tokens)


def digest_body(body: bytes) -> int:
    """Return a 64-bit hash of the body."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big")


def count_tokens(raw: msgspec.Raw) -> int:
    """Count tokens in a JSON value: all strings except roles, types and member names; a number is one token."""
    if not raw:
        return 0
    size = numbers = 0
    for leaf in _iterate_leaves(json.loads(bytes(raw))):
        if isinstance(leaf, str):
            size += len(leaf.encode(errors="surrogatepass"))
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            numbers += 1
    return -(-size // 4) + numbers


def _iterate_leaves(value: Any) -> Iterator[Any]:
    # Iterative: recursive generators would pass each leaf through every level.
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item
        elif isinstance(item, dict):
            stack += (part for name, part in item.items() if name not in {"role", "type"})
        else:
            yield item


def _count_chat_tokens(raw: msgspec.Raw) -> int:
    """Count like `count_tokens`, faster for the usual `[{"role": …, "content": "…"}]`."""
    if not raw:
        return 0
    try:
        size = sum(len(message.content.encode()) for message in _decode_messages(raw))
    except msgspec.DecodeError:
        return max(1, count_tokens(raw))
    return max(1, -(-size // 4))


class _ChatMessage(msgspec.Struct):
    content: str


_decode_messages = msgspec.json.Decoder(list[_ChatMessage]).decode


def _reply_tokens(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> int:
    max_tokens = request.max_completion_tokens or request.max_tokens or request.max_output_tokens or 5_000_000
    target = answer_tokens * 3 // 4 + ordinal % max(1, answer_tokens // 2)  # varies by body, yet is repeatable
    return max(1, min(max_tokens, target))


def _count_inputs(raw: msgspec.Raw) -> int:
    """Return the number of inputs: one for a text or list of token ids, else the length of the list."""
    value = json.loads(bytes(raw)) if raw else ""
    return len(value) if isinstance(value, list) and value and not isinstance(value[0], int) else 1


def _filler_text(tokens: int) -> str:
    size = tokens * 4
    return (_FILLER_TEXT * (size // len(_FILLER_TEXT) + 1))[:size]


def _usage_json(prompt: int, completion: int, model: str, names: tuple[str, str]) -> str:
    is_reasoning_model = model.startswith(("o1", "o3", "o4")) or "reason" in model
    reasoning = completion // 3 if is_reasoning_model else 0
    cache_write = ',"cache_write_tokens":0' if names is RESPONSE_USAGE_NAMES else ""
    return (
        f'"usage":{{"{names[0]}":{prompt},"{names[1]}":{completion},"total_tokens":{prompt + completion},'
        f'"{names[0]}_details":{{"cached_tokens":{prompt // 2 if prompt >= 1024 else 0}{cache_write}}},'
        f'"{names[1]}_details":{{"reasoning_tokens":{reasoning}}}}}'
    )


CHAT_USAGE_NAMES = ("prompt_tokens", "completion_tokens")
RESPONSE_USAGE_NAMES = ("input_tokens", "output_tokens")


def _chat_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    prompt, length = _count_chat_tokens(request.messages), _reply_tokens(request, ordinal, answer_tokens)
    model, count = json.dumps(request.model), request.n or 1
    choices = ",".join(
        f'{{"index":{index},"message":{{"role":"assistant","content":"{_filler_text(length)}"}},"finish_reason":"stop"}}'
        for index in range(count)
    )
    completion = count * length
    body = (
        f'{{"id":"chatcmpl-{ordinal:024x}","object":"chat.completion","created":1700000000,"model":{model},'
        f'"choices":[{choices}],{_usage_json(prompt, completion, request.model, CHAT_USAGE_NAMES)}}}'
    )
    return SimulatedReply(body.encode(), prompt, completion)


def _completion_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    prompt, length = max(1, count_tokens(request.prompt)), _reply_tokens(request, ordinal, answer_tokens)
    count = _count_inputs(request.prompt) * (request.n or 1)
    choices = ",".join(
        f'{{"index":{index},"text":"{_filler_text(length)}","logprobs":null,"finish_reason":"stop"}}'
        for index in range(count)
    )
    completion = count * length
    body = (
        f'{{"id":"cmpl-{ordinal:024x}","object":"text_completion","created":1700000000,'
        f'"model":{json.dumps(request.model)},"choices":[{choices}],'
        f"{_usage_json(prompt, completion, request.model, CHAT_USAGE_NAMES)}}}"
    )
    return SimulatedReply(body.encode(), prompt, completion)


def _response_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    prompt = max(1, count_tokens(request.input) + -(-len((request.instructions or "").encode()) // 4))
    completion = _reply_tokens(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"resp_{ordinal:024x}","object":"response","created_at":1700000000,"status":"completed",'
        f'"model":{json.dumps(request.model)},"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"output":[{{"type":"message","id":"msg_{ordinal:024x}",'
        f'"role":"assistant","status":"completed","content":[{{"type":"output_text","annotations":[],'
        f'"text":"{_filler_text(completion)}"}}]}}],'
        f"{_usage_json(prompt, completion, request.model, RESPONSE_USAGE_NAMES)}}}"
    )
    return SimulatedReply(body.encode(), prompt, completion)


def _embeddings_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    del answer_tokens
    prompt = max(1, count_tokens(request.input))
    numbers = [
        ((ordinal >> position % 53) % 2001 - 1000) / 1000
        for position in range(request.dimensions or DEFAULT_DIMENSIONS)
    ]
    if request.encoding_format == "base64":
        vector = json.dumps(b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode())
    else:
        vector = json.dumps(numbers)
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{vector}}}'
        for index in range(_count_inputs(request.input))
    )
    body = (
        f'{{"object":"list","data":[{data}],"model":{json.dumps(request.model)},'
        f'"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt}}}}}'
    )
    return SimulatedReply(body.encode(), prompt, 0)


def _moderation_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    del answer_tokens
    result = {
        "flagged": False,
        "categories": dict.fromkeys(MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(MODERATION_CATEGORIES, 0.01),
        "category_applied_input_types": {name: ["text"] for name in MODERATION_CATEGORIES},
    }
    results = ",".join([json.dumps(result)] * _count_inputs(request.input))
    body = f'{{"id":"modr-{ordinal:024x}","model":{json.dumps(request.model)},"results":[{results}]}}'
    return SimulatedReply(body.encode(), 0, 0)


def _message_reply(request: SimulatedRequest, ordinal: int, answer_tokens: int) -> SimulatedReply:
    prompt, completion = _count_chat_tokens(request.messages), _reply_tokens(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"msg_{ordinal:024x}","type":"message","role":"assistant","model":{json.dumps(request.model)},'
        f'"content":[{{"type":"text","text":"{_filler_text(completion)}"}}],"stop_reason":"end_turn",'
        '"stop_sequence":null,'
        f'"usage":{{"input_tokens":{prompt},"output_tokens":{completion},"cache_read_input_tokens":0,'
        '"cache_creation_input_tokens":0}}'
    )
    return SimulatedReply(body.encode(), prompt, completion)


_RENDERERS: dict[str, Callable[[SimulatedRequest, int, int], SimulatedReply]] = {
    "/v1/chat/completions": _chat_reply,
    "/v1/completions": _completion_reply,
    "/v1/responses": _response_reply,
    "/v1/embeddings": _embeddings_reply,
    "/v1/moderations": _moderation_reply,
    "/v1/messages": _message_reply,
}


def error_body(message: str, error_type: str, code: str | None = None) -> bytes:
    """Return an error in OpenAI's format."""
    return json.dumps({"error": {"message": message, "type": error_type, "param": None, "code": code}}).encode()

"""The stand-in's answers: plausible text, and usage counted from the request's own text.

A token is four bytes of UTF-8 here, rounded up, in the texts that the request holds and in the answer.
"""

import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

VECTOR = 16
_TEXT = (
    "the request was read and an answer follows in plain words so that a person may see what a model would say "
    "here about the matter at hand with some care for detail and order before the next step is taken "
)


class Request(msgspec.Struct):
    """What the stand-in reads of a body."""

    model: str = "stand-in"
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    instructions: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


class Rendered(msgspec.Struct):
    """An answer's JSON, and the tokens that its usage counts."""

    body: bytes
    prompt_tokens: int
    completion_tokens: int


decode = msgspec.json.Decoder(Request).decode


def render(path: str, request: Request, ordinal: int, answer_tokens: int) -> Rendered | None:
    """The answer to a request on that path; none for a path that is not served."""
    maker = _MAKERS.get(path)
    return None if maker is None else maker(request, ordinal, answer_tokens)


def digest(body: bytes) -> int:
    """A number that stands for the body."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big")


def tokens_in(raw: msgspec.Raw) -> int:
    """Tokens of the texts in a JSON value: all of its strings but the names of members."""
    if not raw:
        return 0
    size = sum(len(text.encode()) for text in _texts(json.loads(bytes(raw))))
    return -(-size // 4)


def _texts(value: Any) -> Iterator[str]:
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, list):
            stack += each
        elif isinstance(each, dict):
            stack += each.values()


def _fast_tokens(raw: msgspec.Raw) -> int:
    """As `tokens_in`, cheap for the usual `[{"role": …, "content": "…"}]`."""
    if not raw:
        return 0
    try:
        size = sum(len(turn.content.encode()) for turn in _decode_turns(raw))
    except msgspec.DecodeError:
        return max(1, tokens_in(raw))
    return max(1, -(-size // 4))


class _Turn(msgspec.Struct):
    content: str


_decode_turns = msgspec.json.Decoder(list[_Turn]).decode


def _length(request: Request, ordinal: int, answer_tokens: int) -> int:
    most = request.max_completion_tokens or request.max_tokens or request.max_output_tokens or 5_000_000
    wanted = answer_tokens * 3 // 4 + ordinal % max(1, answer_tokens // 2)
    return max(1, min(most, wanted))


def _words(tokens: int) -> str:
    size = tokens * 4
    return (_TEXT * (size // len(_TEXT) + 1))[:size]


def _reasons(model: str) -> bool:
    return model.startswith(("o1", "o3", "o4")) or "reason" in model


def _usage(prompt: int, completion: int, model: str, names: tuple[str, str]) -> str:
    reasoning = completion // 3 if _reasons(model) else 0
    return (
        f'"usage":{{"{names[0]}":{prompt},"{names[1]}":{completion},"total_tokens":{prompt + completion},'
        f'"{names[0]}_details":{{"cached_tokens":{prompt // 2 if prompt >= 1024 else 0}}},'
        f'"{names[1]}_details":{{"reasoning_tokens":{reasoning}}}}}'
    )


CHAT_NAMES = ("prompt_tokens", "completion_tokens")
RESPONSE_NAMES = ("input_tokens", "output_tokens")


def _chat(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, completion = _fast_tokens(request.messages), _length(request, ordinal, answer_tokens)
    model = json.dumps(request.model)
    body = (
        f'{{"id":"chatcmpl-{ordinal:024x}","object":"chat.completion","created":1700000000,"model":{model},'
        f'"choices":[{{"index":0,"message":{{"role":"assistant","content":"{_words(completion)}"}},'
        f'"finish_reason":"stop"}}],{_usage(prompt, completion, request.model, CHAT_NAMES)}}}'
    )
    return Rendered(body.encode(), prompt, completion)


def _completion(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, completion = max(1, tokens_in(request.prompt)), _length(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"cmpl-{ordinal:024x}","object":"text_completion","created":1700000000,'
        f'"model":{json.dumps(request.model)},"choices":[{{"index":0,"text":"{_words(completion)}",'
        f'"finish_reason":"stop"}}],{_usage(prompt, completion, request.model, CHAT_NAMES)}}}'
    )
    return Rendered(body.encode(), prompt, completion)


def _response(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt = max(1, tokens_in(request.input) + -(-len((request.instructions or "").encode()) // 4))
    completion = _length(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"resp_{ordinal:024x}","object":"response","created_at":1700000000,"status":"completed",'
        f'"model":{json.dumps(request.model)},"output":[{{"type":"message","id":"msg_{ordinal:024x}",'
        f'"role":"assistant","status":"completed","content":[{{"type":"output_text","annotations":[],'
        f'"text":"{_words(completion)}"}}]}}],{_usage(prompt, completion, request.model, RESPONSE_NAMES)}}}'
    )
    return Rendered(body.encode(), prompt, completion)


def _embeddings(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    del answer_tokens
    inputs = json.loads(bytes(request.input)) if request.input else ""
    count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
    prompt = max(1, tokens_in(request.input))
    vector = ",".join(f"{((ordinal >> place) % 2001 - 1000) / 1000}" for place in range(VECTOR))
    data = ",".join(f'{{"object":"embedding","index":{at},"embedding":[{vector}]}}' for at in range(count))
    body = (
        f'{{"object":"list","data":[{data}],"model":{json.dumps(request.model)},'
        f'"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt}}}}}'
    )
    return Rendered(body.encode(), prompt, 0)


def _moderation(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    del answer_tokens
    body = (
        f'{{"id":"modr-{ordinal:024x}","model":{json.dumps(request.model)},"results":[{{"flagged":false,'
        '"categories":{"violence":false},"category_scores":{"violence":0.01}}]}'
    )
    return Rendered(body.encode(), 0, 0)


def _message(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, completion = _fast_tokens(request.messages), _length(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"msg_{ordinal:024x}","type":"message","role":"assistant","model":{json.dumps(request.model)},'
        f'"content":[{{"type":"text","text":"{_words(completion)}"}}],"stop_reason":"end_turn",'
        f'"usage":{{"input_tokens":{prompt},"output_tokens":{completion},"cache_read_input_tokens":0,'
        '"cache_creation_input_tokens":0}}'
    )
    return Rendered(body.encode(), prompt, completion)


_MAKERS: dict[str, Callable[[Request, int, int], Rendered]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/embeddings": _embeddings,
    "/v1/moderations": _moderation,
    "/v1/messages": _message,
}


def error(message: str, kind: str, code: str | None = None) -> bytes:
    """An error in OpenAI's envelope."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()

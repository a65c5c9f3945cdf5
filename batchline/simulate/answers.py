"""The stand-in's answers: plausible text, and usage counted from the request's own text.

A token is four bytes of UTF-8 here, rounded up, in the texts that the request holds and in the answer; a number
where token ids may stand is one token. The shapes are those that the official Python clients' types require.
"""

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Annotated, Any

import msgspec

VECTOR = 16
"""Numbers in an embedding that asks for no other length."""

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)
"""Of moderation, as OpenAI names them."""

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
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    encoding_format: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


class Rendered(msgspec.Struct):
    """An answer's JSON, and the tokens that its usage counts."""

    body: bytes
    prompt_tokens: int
    completion_tokens: int


_decode = msgspec.json.Decoder(Request).decode


def decode(body: bytes) -> Request:
    """What the stand-in reads of a body; raises `ValueError` or `RecursionError` for a bad one."""
    try:
        return _decode(body)
    except msgspec.DecodeError:
        # Escaped lone surrogates, which msgspec does not take and most servers do.
        return _decode(json.dumps(json.loads(body), ensure_ascii=False).encode(errors="replace"))


def render(path: str, request: Request, ordinal: int, answer_tokens: int) -> Rendered | None:
    """The answer to a request on that path; none for a path that is not served."""
    maker = _MAKERS.get(path)
    return None if maker is None else maker(request, ordinal, answer_tokens)


def digest(body: bytes) -> int:
    """A number that stands for the body."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big")


def tokens_in(raw: msgspec.Raw) -> int:
    """Tokens of a JSON value: of all its strings but roles, types and the names of members; each number is one."""
    if not raw:
        return 0
    size = numbers = 0
    for leaf in _leaves(json.loads(bytes(raw))):
        if isinstance(leaf, str):
            size += len(leaf.encode(errors="surrogatepass"))
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            numbers += 1
    return -(-size // 4) + numbers


def _leaves(value: Any) -> Iterator[Any]:
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, list):
            stack += each
        elif isinstance(each, dict):
            stack += (part for name, part in each.items() if name not in {"role", "type"})
        else:
            yield each


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


def _count(raw: msgspec.Raw) -> int:
    """How many inputs there are: one text or list of token ids, or a list of such."""
    value = json.loads(bytes(raw)) if raw else ""
    return len(value) if isinstance(value, list) and value and not isinstance(value[0], int) else 1


def _words(tokens: int) -> str:
    size = tokens * 4
    return (_TEXT * (size // len(_TEXT) + 1))[:size]


def _reasons(model: str) -> bool:
    return model.startswith(("o1", "o3", "o4")) or "reason" in model


def _usage(prompt: int, completion: int, model: str, names: tuple[str, str]) -> str:
    reasoning = completion // 3 if _reasons(model) else 0
    written = ',"cache_write_tokens":0' if names is RESPONSE_NAMES else ""
    return (
        f'"usage":{{"{names[0]}":{prompt},"{names[1]}":{completion},"total_tokens":{prompt + completion},'
        f'"{names[0]}_details":{{"cached_tokens":{prompt // 2 if prompt >= 1024 else 0}{written}}},'
        f'"{names[1]}_details":{{"reasoning_tokens":{reasoning}}}}}'
    )


CHAT_NAMES = ("prompt_tokens", "completion_tokens")
RESPONSE_NAMES = ("input_tokens", "output_tokens")


def _chat(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, length = _fast_tokens(request.messages), _length(request, ordinal, answer_tokens)
    model, count = json.dumps(request.model), request.n or 1
    choices = ",".join(
        f'{{"index":{at},"message":{{"role":"assistant","content":"{_words(length)}"}},"finish_reason":"stop"}}'
        for at in range(count)
    )
    completion = count * length
    body = (
        f'{{"id":"chatcmpl-{ordinal:024x}","object":"chat.completion","created":1700000000,"model":{model},'
        f'"choices":[{choices}],{_usage(prompt, completion, request.model, CHAT_NAMES)}}}'
    )
    return Rendered(body.encode(), prompt, completion)


def _completion(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, length = max(1, tokens_in(request.prompt)), _length(request, ordinal, answer_tokens)
    count = _count(request.prompt) * (request.n or 1)
    choices = ",".join(
        f'{{"index":{at},"text":"{_words(length)}","logprobs":null,"finish_reason":"stop"}}' for at in range(count)
    )
    completion = count * length
    body = (
        f'{{"id":"cmpl-{ordinal:024x}","object":"text_completion","created":1700000000,'
        f'"model":{json.dumps(request.model)},"choices":[{choices}],'
        f"{_usage(prompt, completion, request.model, CHAT_NAMES)}}}"
    )
    return Rendered(body.encode(), prompt, completion)


def _response(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt = max(1, tokens_in(request.input) + -(-len((request.instructions or "").encode()) // 4))
    completion = _length(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"resp_{ordinal:024x}","object":"response","created_at":1700000000,"status":"completed",'
        f'"model":{json.dumps(request.model)},"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"output":[{{"type":"message","id":"msg_{ordinal:024x}",'
        f'"role":"assistant","status":"completed","content":[{{"type":"output_text","annotations":[],'
        f'"text":"{_words(completion)}"}}]}}],{_usage(prompt, completion, request.model, RESPONSE_NAMES)}}}'
    )
    return Rendered(body.encode(), prompt, completion)


def _embeddings(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    del answer_tokens
    prompt = max(1, tokens_in(request.input))
    numbers = [((ordinal >> place % 53) % 2001 - 1000) / 1000 for place in range(request.dimensions or VECTOR)]
    if request.encoding_format == "base64":
        vector = json.dumps(b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode())
    else:
        vector = json.dumps(numbers)
    data = ",".join(
        f'{{"object":"embedding","index":{at},"embedding":{vector}}}' for at in range(_count(request.input))
    )
    body = (
        f'{{"object":"list","data":[{data}],"model":{json.dumps(request.model)},'
        f'"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt}}}}}'
    )
    return Rendered(body.encode(), prompt, 0)


def _moderation(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    del answer_tokens
    result = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORIES, False),
        "category_scores": dict.fromkeys(CATEGORIES, 0.01),
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
    results = ",".join([json.dumps(result)] * _count(request.input))
    body = f'{{"id":"modr-{ordinal:024x}","model":{json.dumps(request.model)},"results":[{results}]}}'
    return Rendered(body.encode(), 0, 0)


def _message(request: Request, ordinal: int, answer_tokens: int) -> Rendered:
    prompt, completion = _fast_tokens(request.messages), _length(request, ordinal, answer_tokens)
    body = (
        f'{{"id":"msg_{ordinal:024x}","type":"message","role":"assistant","model":{json.dumps(request.model)},'
        f'"content":[{{"type":"text","text":"{_words(completion)}"}}],"stop_reason":"end_turn",'
        '"stop_sequence":null,'
        f'"usage":{{"input_tokens":{prompt},"output_tokens":{completion},"cache_read_input_tokens":0,'
        '"cache_creation_input_tokens":0}}'
    )
    return Rendered(body.encode(), prompt, completion)


def with_separators(rendered: Rendered) -> Rendered:
    """Return the answer with U+2028, U+2029 and U+0085 at the start of each of its texts."""
    body = rendered.body.replace(b'"the ', '"\u2028\u2029\x85the '.encode())
    return Rendered(body, rendered.prompt_tokens, rendered.completion_tokens)


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

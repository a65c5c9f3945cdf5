"""`/v1/embeddings`: one vector of finite numbers, or base64 text, for each input."""

import re
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import Raw, structs

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Judgement
from batchline.models.usage import ReportedUsage, Usage, to_usage
from batchline.upstream.dialects.answers import Answer, ModelName, missing_list

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_BASE64_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


class _Embedding(msgspec.Struct, gc=False):
    # The decoder rejects numbers beyond the range of a float, nulls and nested lists.
    embedding: list[float] | str


class _EmbeddingReply(msgspec.Struct, gc=False):
    data: list[_Embedding]
    usage: ReportedUsage | None = None
    model: ModelName | None = None


class _EmbeddingRequest(msgspec.Struct, gc=False):
    input: str | list[Raw]


_decode: Final = msgspec.json.Decoder(_EmbeddingReply).decode
_decode_request: Final = msgspec.json.Decoder(_EmbeddingRequest).decode


def count_inputs(request_body: bytes | Raw) -> int | None:
    """Return the number of vectors that a request asks for; None if its `input` has an unknown form.

    A list of integers is one input, given as tokens.
    """
    try:
        inputs = _decode_request(request_body).input
        if isinstance(inputs, str):
            return 1
        if inputs and bytes(inputs[0])[:1] in b"-0123456789":
            return 1
    except (msgspec.DecodeError, RecursionError):
        return None
    return len(inputs)


def read_quickly(body: bytes, inputs: int | None) -> Judgement | None:
    """Return the judgement of an ordinary answer; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    data = reply.data
    if not data or (inputs is not None and len(data) != inputs):
        return None
    for item in data:
        vector = item.embedding
        if not vector or (isinstance(vector, str) and not _is_base64(vector)):
            return None
    usage = reply.usage
    return Judgement(
        body=body, usage=None if usage is None else to_input_usage(to_usage(usage)), model=reply.model
    )


def read_answer(body: dict[str, Any], inputs: int | None) -> Answer:
    """Return the outcome of a decoded body for a request with that number of inputs, None if it is unknown."""
    if (failure := missing_list(body, "data")) is not None:
        return failure
    data = body["data"]
    if inputs is not None and len(data) != inputs:
        return Answer(ErrorCode.INVALID_RESPONSE, f"{len(data)} vectors came for {inputs} inputs")
    for index, item in enumerate(data):
        if (problem := _problem(item.get("embedding") if isinstance(item, dict) else None)) is not None:
            return Answer(ErrorCode.INVALID_RESPONSE, f"data[{index}].embedding {problem}")
    return Answer()


def to_input_usage(usage: Usage | None) -> Usage | None:
    """Return the usage of a request without output; some servers report only its total."""
    if usage is None or usage.prompt_tokens or usage.completion_tokens:
        return usage
    return structs.replace(usage, prompt_tokens=usage.total_tokens)


def _problem(vector: object) -> str | None:
    """Return the reason why the value is not a vector, or None if it is one."""
    if not isinstance(vector, list | str) or not vector:
        return "is missing or empty"
    if isinstance(vector, str):
        return None if _is_base64(vector) else "is neither a list of numbers nor base64"
    # `type` and not `isinstance`: booleans are integers too.
    if all(type(number) in {int, float} and _is_finite(number) for number in vector):
        return None
    return "has a member that is not a finite number"


def _is_finite(number: float) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _is_base64(text: str) -> bool:
    """Return True if the text can be base64."""
    # Deleting the characters is several times faster than matching them.
    if not text.isascii() or text.encode().translate(None, _BASE64_CHARACTERS):
        return False
    return len(text) % 4 == 0 and (text.find("=") == -1 or _BASE64.fullmatch(text) is not None)

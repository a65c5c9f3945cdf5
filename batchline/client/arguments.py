"""Validate arguments, and build request models from them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from batchline.models.batches import CreateBatchRequest
from batchline.models.errors import InvalidInput
from batchline.storage.records.store import Idempotency

MAX_KEY_CHARACTERS = 255

_M = TypeVar("_M", bound=BaseModel)


def parse_arguments(model: type[_M], **fields: Any) -> _M:
    """Return the model with those fields; raises `InvalidInput` that names the first invalid one."""
    try:
        return model(**fields)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        param_name = ".".join(str(part) for part in first_error["loc"] if not isinstance(part, int))
        raise InvalidInput(
            f"{param_name}: {first_error['msg'].removeprefix('Value error, ')}", param=param_name or None
        ) from None


def idempotency_of(
    key: str | Idempotency | None, request: CreateBatchRequest, expires_after_s: int | None, member_id: str | None
) -> Idempotency | None:
    """Return what identifies a repeated request; None without a key. Raises `InvalidInput` for a bad key."""
    if key is None or isinstance(key, Idempotency):
        return key
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidInput(
            f"Idempotency-Key has {len(key)} characters, 1 to {MAX_KEY_CHARACTERS} are allowed",
            param="Idempotency-Key",
        )
    metadata = sorted((request.metadata or {}).items())  # the order of JSON members must not matter
    request_fields = (
        request.input_file_id,
        request.endpoint,
        request.completion_window,
        metadata,
        expires_after_s,
        *request.given_options,
    )
    # With the member: equal keys of two members must not share a batch.
    return Idempotency(_hash_values((member_id, key)), _hash_values(request_fields))


def _hash_values(values: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class ExpiresAfterDict(TypedDict):
    """A lifetime in seconds from the file's creation; the anchor is always `created_at`."""

    anchor: Literal["created_at"]
    seconds: int


ExpiresAfter = int | ExpiresAfterDict
"""Seconds, or the mapping that OpenAI's clients send."""


def parse_lifetime_s(expires_after: ExpiresAfter | None) -> int | None:
    """Return the seconds, None if not given; raises `InvalidInput` unless they are a positive integer."""
    value = expires_after
    if isinstance(value, Mapping):
        if value.get("anchor", "created_at") != "created_at":
            raise InvalidInput(
                f"expires_after has the anchor {value['anchor']!r}; write 'created_at'", param="anchor"
            )
        value = value.get("seconds")
    if value is None and expires_after is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"expires_after is {expires_after!r}; give seconds, at least 1", param="expires_after")
    return value

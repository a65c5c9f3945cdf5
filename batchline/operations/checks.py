"""Making models of what a caller gives."""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from batchline.models.batches import CreateBatchRequest
from batchline.models.errors import InvalidInput
from batchline.storage.records import Idempotency

LONGEST_KEY = 255

_M = TypeVar("_M", bound=BaseModel)


def checked(model: type[_M], **fields: Any) -> _M:
    """The model with those fields; raises `InvalidInput` that names the first one that is wrong."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        raise InvalidInput(f"{name}: {first['msg'].removeprefix('Value error, ')}", param=name or None) from None


def idempotency(
    key: str | None, request: CreateBatchRequest, expires_after_s: int | None, member_id: str | None
) -> Idempotency | None:
    """What tells a request that is made again; nothing without a key. Raises `InvalidInput` for one too long."""
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY:
        raise InvalidInput(
            f"Idempotency-Key has {len(key)} characters, 1 to {LONGEST_KEY} are allowed", param="Idempotency-Key"
        )
    metadata = sorted((request.metadata or {}).items())
    asked = (request.input_file_id, request.endpoint, request.completion_window, metadata, expires_after_s)
    return Idempotency(_digest((member_id, key)), _digest(asked))


def _digest(values: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()

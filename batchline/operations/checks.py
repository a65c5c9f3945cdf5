"""Making models of what a caller gives."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from batchline.models.errors import InvalidInput

_M = TypeVar("_M", bound=BaseModel)


def checked(model: type[_M], **fields: Any) -> _M:
    """The model with those fields; raises `InvalidInput` that names the first one that is wrong."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        raise InvalidInput(f"{name}: {first['msg'].removeprefix('Value error, ')}", param=name or None) from None

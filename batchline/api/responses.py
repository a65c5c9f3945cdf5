"""What handlers have in common: on whose behalf they act, and how objects are written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.responses import Response

from batchline.api.auth import Principal
from batchline.client import Batchline
from batchline.models.base import WireModel


class Deleted(WireModel):
    """What was deleted."""

    id: str
    object: Literal["file", "batch"]
    deleted: Literal[True] = True


async def _current_client(request: Request) -> Batchline:
    principal: Principal = request.state.principal
    return principal.client


CurrentClient = Annotated[Batchline, Depends(_current_client)]
"""The client on behalf of whoever asks."""


def model_response(model: WireModel) -> Response:
    """The object as JSON; what is absent is left out."""
    return json_response(model.to_json())


def json_response(text: bytes | str) -> Response:
    """An answer of that JSON."""
    return Response(text, media_type="application/json")


def openapi_stream(media_type: str, description: str, **headers: str) -> dict[str, Any]:
    """What the OpenAPI document says of an answer that is no JSON."""
    return {
        "description": description,
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
    }

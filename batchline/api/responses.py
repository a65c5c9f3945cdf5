"""Shared parts of the handlers: the caller's client, and serialization of responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.responses import Response

from batchline.api.auth import Principal
from batchline.client import Batchline
from batchline.models.base import WireModel


class Deleted(WireModel):
    """The deleted object."""

    id: str
    object: Literal["file", "batch"]
    deleted: Literal[True] = True


async def _current_client(request: Request) -> Batchline:
    principal: Principal = request.state.principal
    return principal.client


CurrentClient = Annotated[Batchline, Depends(_current_client)]
"""The client with the caller's rights."""


def model_response(model: WireModel) -> Response:
    """Return the object as JSON without absent fields."""
    return json_response(model.to_json())


def json_response(text: bytes | str) -> Response:
    """Return a response with that JSON."""
    return Response(text, media_type="application/json")


def openapi_stream(media_type: str, description: str, **headers: str) -> dict[str, Any]:
    """Return the OpenAPI description of a response that is not JSON."""
    return {
        "description": description,
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
    }

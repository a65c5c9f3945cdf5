"""What handlers have in common: on whose behalf they act, and how objects are written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.responses import Response

from batchline.api.door import Visitor
from batchline.models.wire import WireModel
from batchline.operations import Batchline


class Deleted(WireModel):
    """What was deleted."""

    id: str
    object: Literal["file", "batch"]
    deleted: Literal[True] = True


async def _client(request: Request) -> Batchline:
    visitor: Visitor = request.state.visitor
    return visitor.client


Here = Annotated[Batchline, Depends(_client)]
"""The client on behalf of whoever asks."""


def written(found: WireModel) -> Response:
    """The object as JSON; what is absent is left out."""
    return json_answer(found.to_json())


def json_answer(text: bytes | str) -> Response:
    """An answer of that JSON."""
    return Response(text, media_type="application/json")


def streamed_as(media_type: str, description: str, **headers: str) -> dict[str, Any]:
    """What the OpenAPI document says of an answer that is no JSON."""
    return {
        "description": description,
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
    }

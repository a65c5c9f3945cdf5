"""What a browser asks for: the client on its behalf, queries without their empty fields, and forms."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import FormData

from batchline.api.door import Visitor
from batchline.operations import Batchline

MOST_FIELDS = 1_000


async def _client(request: Request) -> Batchline:
    visitor: Visitor = request.state.visitor
    return visitor.client.coming_from("frontend")


Here = Annotated[Batchline, Depends(_client)]
"""The client on behalf of whoever asks."""


async def sent_form(request: Request) -> FormData:
    """The fields of a form; raises `HTTPException` for what is none."""
    return await request.form(max_files=0, max_fields=MOST_FIELDS)


Sent = Annotated[FormData, Depends(sent_form)]


def query_of(request: Request, *names: str) -> dict[str, str]:
    """Those fields of the query that are filled in."""
    found = {name: request.query_params.get(name, "").strip() for name in names}
    return {name: value for name, value in found.items() if value}

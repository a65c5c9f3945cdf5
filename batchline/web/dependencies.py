"""What a browser asks for: the client on its behalf, queries without their empty fields, and forms."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import FormData

from batchline.api.auth import Principal
from batchline.client import Batchline

MAX_FORM_FIELDS = 1_000


async def _current_client(request: Request) -> Batchline:
    principal: Principal = request.state.principal
    return principal.client.with_origin("frontend")


CurrentClient = Annotated[Batchline, Depends(_current_client)]
"""The client on behalf of whoever asks."""


async def read_form(request: Request) -> FormData:
    """The fields of a form; raises `HTTPException` for what is none."""
    return await request.form(max_files=0, max_fields=MAX_FORM_FIELDS)


FormFields = Annotated[FormData, Depends(read_form)]


def read_query(request: Request, *names: str) -> dict[str, str]:
    """Those fields of the query that are filled in."""
    values = {name: request.query_params.get(name, "").strip() for name in names}
    return {name: value for name, value in values.items() if value}

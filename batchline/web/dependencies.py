"""Dependencies of the pages: the caller's client, non-empty query fields, and forms."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import FormData

from batchline.api.auth import Principal
from batchline.client import Batchline

MAX_FORM_FIELDS = 1_000


async def _current_client(request: Request) -> Batchline:
    principal: Principal = request.state.principal
    return principal.client.derive(origin="frontend")


CurrentClient = Annotated[Batchline, Depends(_current_client)]
"""The client with the caller's rights."""


async def read_form(request: Request) -> FormData:
    """Return the fields of a form; raises `HTTPException` if it is invalid."""
    return await request.form(max_files=0, max_fields=MAX_FORM_FIELDS)  # without files, forms stay in memory


FormFields = Annotated[FormData, Depends(read_form)]


def read_query(request: Request, *names: str) -> dict[str, str]:
    """Return the given fields of the query that are not empty."""
    values = {name: request.query_params.get(name, "").strip() for name in names}
    return {name: value for name, value in values.items() if value}

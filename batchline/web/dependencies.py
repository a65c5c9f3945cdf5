"""Dependencies of the pages: the caller's client, non-empty query fields, and forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from starlette.datastructures import FormData

from batchline.api.auth import Principal
from batchline.client import Batchline
from batchline.client.pagination import Page

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


def list_context(
    path: str, query: Mapping[str, str], page: Page[Any], tab_param: str, tabs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the template values of a list: the query, its tabs, and the addresses of the first and next page.

    Each tab has the name, the address and True if it is selected; it sets `tab_param` to its value.
    """
    filters = {name: value for name, value in query.items() if name != "after"}
    other_filters = {name: value for name, value in filters.items() if name != tab_param}

    def url(**params: str) -> str:
        return f"{path}?{urlencode({name: value for name, value in params.items() if value})}"

    return {
        "asked": query,
        "tab_links": [
            (name, url(**other_filters, **{tab_param: value}), value == filters.get(tab_param, ""))
            for value, name in tabs
        ],
        "more": url(**filters, after=page.last_id or "") if page.has_more else None,
        "first": url(**filters) if "after" in query else None,
    }

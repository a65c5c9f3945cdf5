"""The start page: a filtered list of batches."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from batchline.api.auth import Principal
from batchline.api.concurrency import FairRoute
from batchline.client import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.web.dependencies import CurrentClient, list_context, read_query
from batchline.web.rendering import render_page

FILTERS: Final = ("status", "search", "created_from", "created_to", "member", "order")
STATUS_TABS: Final = (
    ("", "All"),
    ("in_progress", "In progress"),
    ("completed", "Completed"),
    ("failed", "Failed"),
    ("cancelled", "Cancelled"),
    ("expired", "Expired"),
)

router = APIRouter(route_class=FairRoute)


@router.get("/")
def list_batches(request: Request, client: CurrentClient) -> Response:
    """Show a page of batches."""
    params = read_query(request, *FILTERS, "after")
    batches = client.batches.records(**_list_query(params), limit=20, include="analytics")
    return render_page(
        request,
        "batches.html",
        **list_context("/", params, batches, "status", STATUS_TABS),
        batches=batches.data,
        is_filtered=bool(params.keys() - {"order", "after"}),
        members=visible_members(request, client),
        currency=client.currency,
        endpoints=client.settings.endpoints,
        endpoint=None,
    )


@router.get("/batches")
def redirect_to_list() -> Response:
    """Redirect a shortened address to the list of batches."""
    return RedirectResponse("/", 301)


def _list_query(params: dict[str, str]) -> dict[str, Any]:
    """Return the filters as query arguments; both days are inclusive, in UTC."""
    days = {"created_after": ("created_from", "T00:00:00Z"), "created_before": ("created_to", "T23:59:59Z")}
    query: dict[str, Any] = {name: params[name] for name in ("status", "search", "after") if name in params}
    query |= {name: params[day] + time for name, (day, time) in days.items() if day in params}
    if "member" in params:
        query["member_id"] = params["member"]
    return {**query, "active_first": params.get("order") != "newest"}


def visible_members(request: Request, client: Batchline) -> dict[str, str]:
    """Return ids and names of the members whose batches a manager can see; empty for others."""
    principal: Principal = request.state.principal
    # Only managers may see that other members exist.
    return {member.id: member.name for member in ApiKeys(client).members()} if principal.is_manager else {}

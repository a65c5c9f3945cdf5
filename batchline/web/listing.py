"""The first page: batches, what they are at, and which of them to show."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from batchline.api.door import Visitor
from batchline.api.places import FairRoute
from batchline.operations import Batchline
from batchline.operations.keys import Keys
from batchline.steps.prices import CURRENCY
from batchline.web.asked import Here, query_of
from batchline.web.rendering import page

FILTERS: Final = ("status", "search", "created_from", "created_to", "member", "order")
STATUSES: Final = (
    ("", "All"),
    ("in_progress", "In progress"),
    ("completed", "Completed"),
    ("failed", "Failed"),
    ("cancelled", "Cancelled"),
    ("expired", "Expired"),
)

router = APIRouter(route_class=FairRoute)


@router.get("/")
def list_batches(request: Request, client: Here) -> Response:
    """Show a page of batches."""
    asked = query_of(request, *FILTERS, "after")
    batches = client.batches.records(**_query(asked), limit=20, include="analytics")
    chosen = {name: value for name, value in asked.items() if name != "after"}
    return page(
        request,
        "batches.html",
        batches=batches.data,
        more=f"/?{urlencode({**chosen, 'after': batches.last_id})}" if batches.has_more else None,
        first=f"/?{urlencode(chosen)}" if "after" in asked else None,
        asked=asked,
        statuses=_tabs(chosen),
        is_filtered=bool(chosen.keys() - {"order"}),
        members=members_seen(request, client),
        currency=None if client.engine.settings.prices else CURRENCY,
        endpoints=client.engine.settings.endpoints,
        endpoint=None,
    )


@router.get("/batches")
def go_to_list() -> Response:
    """Lead whoever cuts off an address to where batches are."""
    return RedirectResponse("/", 301)


def _query(asked: dict[str, str]) -> dict[str, Any]:
    """The filters as the operations know them; both days are in it, in UTC."""
    days = {"created_after": ("created_from", "T00:00:00Z"), "created_before": ("created_to", "T23:59:59Z")}
    found: dict[str, Any] = {name: asked[name] for name in ("status", "search", "after") if name in asked}
    found |= {name: asked[day] + time for name, (day, time) in days.items() if day in asked}
    if "member" in asked:
        found["member_id"] = asked["member"]
    return {**found, "active_first": asked.get("order") != "newest"}


def _tabs(chosen: dict[str, str]) -> list[tuple[str, str, bool]]:
    """Name and address of each status, and whether it is the one that is shown."""
    others = {name: value for name, value in chosen.items() if name != "status"}
    now = chosen.get("status", "")
    return [
        (name, "/?" + urlencode({**others, "status": status} if status else others), status == now)
        for status, name in STATUSES
    ]


def members_seen(request: Request, client: Batchline) -> dict[str, str]:
    """Ids and names of those whose batches whoever asks can see beside their own."""
    visitor: Visitor = request.state.visitor
    return {each.id: each.name for each in Keys(client).members()} if visitor.is_manager else {}

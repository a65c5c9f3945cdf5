"""The results of a batch, some at a time, with what was asked and answered folded in; also while it runs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from msgspec import structs

from batchline.api.batches import read_results
from batchline.api.places import FairRoute
from batchline.models.batches import BatchResultItem, BatchResultsQuery
from batchline.operations.checks import checked
from batchline.operations.result import Result
from batchline.web.asked import Here, query_of
from batchline.web.batch import is_retriable
from batchline.web.readable import Said, answered_in, asked_in, raw, start_of
from batchline.web.rendering import page

SIZES: Final = (10, 20, 50, 100)
SIZE: Final = 20
STATUSES: Final = get_args(get_args(BatchResultsQuery.model_fields["status"].annotation)[0])
MOST_READ_BYTES: Final = 2**20
"""Of a body whose texts are shown; what is made of JSON may take thirty times its size."""

AGAIN: Final = frozenset({"failed", "expired", "cancelled"})

router = APIRouter(prefix="/batches/{batch_id}", route_class=FairRoute)


class Row(NamedTuple):
    """A request as it is shown; the item is without its bodies, which may be long."""

    item: BatchResultItem
    asked: list[Said]
    answered: list[Said]
    request: Said
    response: Said | None
    alone: str
    """The query that gives this one as JSON."""


@router.get("/results")
def browse_results(request: Request, batch_id: str, client: Here) -> Response:
    """Show a page of results."""
    asked = query_of(request, "search", "status", "skip", "limit")
    query = checked(BatchResultsQuery, **{"limit": SIZE, **asked})
    size = min(query.limit or SIZE, SIZES[-1])
    batch = client.batches.record(batch_id)
    chosen = {name: value for name, value in asked.items() if name in {"search", "status"}}
    found = client.batches.result_texts(batch_id, **chosen, skip=query.skip, limit=size + 1)
    rows = [_row(item, chosen, query.skip + number) for number, item in enumerate(found)]

    def at(skip: int) -> str:
        place: dict[str, str | int] = {**chosen}
        if skip:
            place["skip"] = skip
        if size != SIZE:
            place["limit"] = size
        return f"/batches/{batch_id}/results" + (f"?{urlencode(place)}" if place else "")

    return page(
        request,
        "results.html",
        batch=batch,
        rows=rows[:size],
        skip=query.skip,
        size=size,
        sizes=SIZES,
        statuses=STATUSES,
        asked=asked,
        before=at(max(0, query.skip - size)) if query.skip else None,
        behind=at(query.skip + size) if len(rows) > size else None,
        whole=f"/batches/{batch_id}/results.jsonl?{urlencode(chosen)}",
        again=AGAIN if is_retriable(batch) else frozenset(),
    )


def _row(result: Result, chosen: dict[str, str], number: int) -> Row:
    texts = (result.input_text, result.response_text)
    if any(text is not None and len(text) > MOST_READ_BYTES for text in texts):
        result = structs.replace(result, input_text=None, response_text=None)
    item = result.to_item()
    return Row(
        item=item.model_copy(update={"input_body": None, "response_body": None}),
        asked=asked_in(item.input_body),
        answered=answered_in(item.response_body),
        request=_whole(texts[0], item.input_body) or raw(None),
        response=_whole(texts[1], item.response_body),
        alone=urlencode({**chosen, "skip": number, "limit": 1}),
    )


def _whole(text: bytes | None, body: Any) -> Said | None:
    """The body laid out, or as it stands if it was too long to be read."""
    if text is None:
        return None
    return start_of(text) if body is None and text != b"null" else raw(body)


@router.get("/results.jsonl")
def download_results(request: Request, batch_id: str, client: Here) -> Response:
    """Give the results that are asked for as lines of JSON."""
    query: dict[str, Any] = query_of(request, "search", "status", "skip", "limit")
    answer = read_results(batch_id, checked(BatchResultsQuery, **query), client)
    answer.headers["Content-Disposition"] = f'attachment; filename="{batch_id}-results.jsonl"'
    return answer

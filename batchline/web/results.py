"""Pages of a batch's results with collapsed request and response texts, also while it runs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from msgspec import structs

from batchline.api.batches import read_results
from batchline.api.concurrency import FairRoute
from batchline.client.arguments import parse_arguments
from batchline.client.raw_result import RawResult
from batchline.models.batches import BatchResultItem, BatchResultsQuery
from batchline.web.batch import is_retryable
from batchline.web.dependencies import CurrentClient, read_query
from batchline.web.message_text import MessageText, json_start, pretty_json, request_messages, response_messages
from batchline.web.rendering import render_page

PAGE_SIZES: Final = (10, 20, 50, 100)
DEFAULT_PAGE_SIZE: Final = 20
STATUSES: Final = get_args(get_args(BatchResultsQuery.model_fields["status"].annotation)[0])
MAX_PARSED_BYTES: Final = 2**20
"""Maximum size of a parsed body; parsed JSON may take thirty times its size."""

RETRYABLE_STATUSES: Final = frozenset({"failed", "expired", "cancelled"})

router = APIRouter(prefix="/batches/{batch_id}", route_class=FairRoute)


class ResultView(NamedTuple):
    """A result as displayed; the item has no bodies, which may be long."""

    item: BatchResultItem
    request_texts: list[MessageText]
    response_texts: list[MessageText]
    request: MessageText
    response: MessageText | None
    json_query: str
    """Query string that returns this result as JSON."""


@router.get("/results")
def browse_results(request: Request, batch_id: str, client: CurrentClient) -> Response:
    """Show a page of results."""
    params = read_query(request, "search", "status", "skip", "limit")
    query = parse_arguments(BatchResultsQuery, **{"limit": DEFAULT_PAGE_SIZE, **params})
    size = min(query.limit or DEFAULT_PAGE_SIZE, PAGE_SIZES[-1])
    batch = client.batches.record(batch_id)
    filters = {name: value for name, value in params.items() if name in {"search", "status"}}
    # One more than shown, to see if there is a next page.
    results = client.batches.raw_results(batch_id, **filters, skip=query.skip, limit=size + 1)
    rows = [_result_view(item, filters, query.skip + number) for number, item in enumerate(results)]

    def page_url(skip: int) -> str:
        page_query: dict[str, str | int] = {**filters}
        if skip:
            page_query["skip"] = skip
        if size != DEFAULT_PAGE_SIZE:
            page_query["limit"] = size
        return f"/batches/{batch_id}/results" + (f"?{urlencode(page_query)}" if page_query else "")

    return render_page(
        request,
        "results.html",
        batch=batch,
        rows=rows[:size],
        skip=query.skip,
        size=size,
        sizes=PAGE_SIZES,
        statuses=STATUSES,
        asked=params,
        before=page_url(max(0, query.skip - size)) if query.skip else None,
        behind=page_url(query.skip + size) if len(rows) > size else None,
        whole=f"/batches/{batch_id}/results.jsonl?{urlencode(filters)}",
        again=RETRYABLE_STATUSES if is_retryable(batch) else frozenset(),
    )


def _result_view(result: RawResult, filters: dict[str, str], number: int) -> ResultView:
    texts = (result.input_text, result.response_text)
    if any(text is not None and len(text) > MAX_PARSED_BYTES for text in texts):
        result = structs.replace(result, input_text=None, response_text=None)
    item = result.to_item()
    return ResultView(
        item=item.model_copy(update={"input_body": None, "response_body": None}),
        request_texts=request_messages(item.input_body),
        response_texts=response_messages(item.response_body),
        request=_show_body(texts[0], item.input_body) or pretty_json(None),
        response=_show_body(texts[1], item.response_body),
        json_query=urlencode({**filters, "skip": number, "limit": 1}),
    )


def _show_body(text: bytes | None, body: Any) -> MessageText | None:
    """Return the body formatted, or as it is if it was too long to be parsed."""
    if text is None:
        return None
    return json_start(text) if body is None and text != b"null" else pretty_json(body)


@router.get("/results.jsonl")
def download_results(request: Request, batch_id: str, client: CurrentClient) -> Response:
    """Return the selected results as JSON lines."""
    query: dict[str, Any] = read_query(request, "search", "status", "skip", "limit")
    response = read_results(batch_id, parse_arguments(BatchResultsQuery, **query), client)
    response.headers["Content-Disposition"] = f'attachment; filename="{batch_id}-results.jsonl"'
    return response

"""Routes below `/v1/batches`."""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from batchline.api.concurrency import FairRoute, iterate_in_thread, run_in_thread
from batchline.api.errors import openapi_errors
from batchline.api.responses import CurrentClient, Deleted, json_response, model_response, openapi_stream
from batchline.client import Batchline
from batchline.client.batch_runs import POLL_INTERVAL_S
from batchline.client.pauses import DEFAULT_MESSAGE
from batchline.client.raw_result import RawResult, split_blocks
from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import (
    BatchListResponse,
    BatchResponse,
    BatchResultsQuery,
    BatchUsage,
    CreateBatchRequest,
    IncludeQuery,
    ListBatchesQuery,
    RetryRequest,
    RetryRequestsRequest,
)
from batchline.models.errors import Conflict
from batchline.models.status import ACTIVE_STATUSES

router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=FairRoute)

MAX_BLOCK_ITEMS: Final = 100
MAX_BLOCK_BYTES: Final = 2**20
LINES_MEDIA_TYPE: Final = "application/x-ndjson"
EXAMPLE = "batch-0192f0c1a5"


class OutputExpiry(BaseModel):
    """Lifetime of a batch's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(ge=1, lt=10**12)


class CreateBatchBody(CreateBatchRequest):
    """Fields of a new batch, and the lifetime of its files."""

    output_expires_after: OutputExpiry | None = None


@router.post("", response_model=BatchResponse, responses=openapi_errors(409))
def create_batch(
    body: CreateBatchBody,
    client: CurrentClient,
    idempotency_key: Annotated[
        str | None, Header(description="A repeated key with the same body returns the same batch.")
    ] = None,
) -> Response:
    """Create a batch from an uploaded file, and run it."""
    expiry = body.output_expires_after
    batch = client.batches.create(
        **body.model_dump(exclude={"output_expires_after"}),
        output_expires_after=None if expiry is None else expiry.seconds,
        idempotency_key=idempotency_key,
        default_on_limit="stop",  # OpenAI's clients know no pause: they would wait until the window closes
    )
    return model_response(batch)


@router.get("", response_model=BatchListResponse, responses=openapi_errors())
def list_batches(query: Annotated[ListBatchesQuery, Query()], client: CurrentClient) -> Response:
    """List batches, newest first."""
    return json_response(client.batches.list(**query.model_dump()).to_json())


@router.get("/{batch_id}", response_model=BatchResponse, responses=openapi_errors())
def retrieve_batch(batch_id: str, query: Annotated[IncludeQuery, Query()], client: CurrentClient) -> Response:
    """Return a batch."""
    batch = client.batches.retrieve(batch_id, include=query.include or "")
    if query.includes_analytics and batch.analytics is None and batch.status in ACTIVE_STATUSES:
        so_far = client.batches.analytics(batch_id)
        batch = batch.model_copy(update={"analytics": so_far, "usage": BatchUsage.from_analytics(so_far)})
    return model_response(batch)


@router.get("/{batch_id}/analytics", response_model=BatchAnalytics, responses=openapi_errors())
def read_analytics(batch_id: str, client: CurrentClient) -> Response:
    """Return the metrics of a batch; while it runs, those of the requests settled so far."""
    return model_response(client.batches.analytics(batch_id))


@router.get(
    "/{batch_id}/results",
    response_class=Response,
    responses={
        **openapi_errors(),
        200: openapi_stream(LINES_MEDIA_TYPE, "A `BatchResultItem` for each request, in input order."),
    },
)
def read_results(batch_id: str, query: Annotated[BatchResultsQuery, Query()], client: CurrentClient) -> Response:
    """Return the result of each request, also while the batch runs; each line is a `BatchResultItem`."""
    results = client.batches.raw_results(batch_id, **query.model_dump())
    blocks = split_blocks(results, max_items=MAX_BLOCK_ITEMS, max_bytes=MAX_BLOCK_BYTES)
    lines = (b"".join(map(RawResult.to_line, block)) for block in blocks)
    # Before the response starts: a batch that is not found must still become a 404.
    first_block = next(lines, b"")
    return StreamingResponse(iterate_in_thread(chain([first_block], lines)), media_type=LINES_MEDIA_TYPE)


async def delete_when_idle(client: Batchline, batch_id: str) -> None:
    """Delete the batch like `Batches.delete`, but without occupying a thread between polls."""
    deadline = time.monotonic() + client.batches.deletion_timeout_s
    while (reason := await run_in_thread(client.batches.delete_if_idle, batch_id)) is not None:
        if time.monotonic() >= deadline:
            raise reason
        await asyncio.sleep(POLL_INTERVAL_S)


@router.post("/{batch_id}/cancel", response_model=BatchResponse, responses=openapi_errors(409))
def cancel_batch(batch_id: str, client: CurrentClient) -> Response:
    """Cancel a batch; answers received so far are kept."""
    return model_response(client.batches.cancel(batch_id))


class PauseBody(BaseModel):
    """The reason for a pause."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str = Field(
        default=DEFAULT_MESSAGE, max_length=1_000, description="Why, for those who find the batch paused."
    )


@router.post("/{batch_id}/pause", response_model=BatchResponse, responses=openapi_errors(409))
def pause_batch(batch_id: str, client: CurrentClient, body: PauseBody | None = None) -> Response:
    """Pause a batch: nothing more is sent until it is resumed, and its completion window stands still.

    Requests in flight are finished, and every answer is kept.
    """
    return model_response(client.batches.pause(batch_id, message=body.message if body else DEFAULT_MESSAGE))


@router.post("/{batch_id}/resume", response_model=BatchResponse, responses=openapi_errors(409))
def resume_batch(batch_id: str, client: CurrentClient) -> Response:
    """Resume a paused batch where it ran: in its flow run, or in this server."""
    resume_paused(client, batch_id)
    return model_response(client.batches.retrieve(batch_id, include=""))


def resume_paused(client: Batchline, batch_id: str) -> None:
    """Resume a paused batch where it ran; raises `Conflict` if that was neither a server nor a flow run."""
    runner = client.batches.resume_where_it_ran(batch_id)
    if runner is None:
        raise Conflict(
            f"batch {batch_id} was not run by a server or a Prefect deployment; to continue it where it ran: "
            f"batchline run --resume {batch_id}"
        )
    if runner == "server":
        client.runner.start(batch_id)


@router.post("/{batch_id}/retry", response_model=BatchResponse, responses=openapi_errors(409))
def retry_batch(batch_id: str, client: CurrentClient, body: RetryRequest | None = None) -> Response:
    """Send all failed, expired and cancelled requests of an ended batch again, or those with a mark."""
    return model_response(client.batches.retry(batch_id, mark=body.mark if body else None))


@router.post("/{batch_id}/retry-requests", response_model=BatchResponse, responses=openapi_errors(409))
def retry_requests(batch_id: str, body: RetryRequestsRequest, client: CurrentClient) -> Response:
    """Send the given requests of an ended batch again."""
    return model_response(client.batches.retry_requests(batch_id, body.request_ids))


@router.delete("/{batch_id}", response_model=Deleted, responses=openapi_errors(409))
async def delete_batch(batch_id: str, client: CurrentClient) -> Response:
    """Delete a batch with its output and error files; a running batch is cancelled first."""
    await delete_when_idle(client, batch_id)
    return model_response(Deleted(id=batch_id, object="batch"))

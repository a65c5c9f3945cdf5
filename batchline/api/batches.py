"""`/v1/batches`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from batchline.api.answers import Deleted, Here, json_answer, streamed_as, written
from batchline.api.errors import documented
from batchline.api.places import FairRoute, in_turn, run_aside
from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import (
    BatchListResponse,
    BatchResponse,
    BatchResultsQuery,
    BatchUsage,
    CreateBatchRequest,
    Included,
    ListBatchesQuery,
    RetryRequestsRequest,
)
from batchline.models.status import ACTIVE
from batchline.operations import Batchline
from batchline.operations.batches import POLL_S
from batchline.operations.expiry import Expiry
from batchline.operations.result import Result

router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=FairRoute)

ITEMS_AT_ONCE: Final = 100
BLOCK_BYTES: Final = 2**20
LINES: Final = "application/x-ndjson"
EXAMPLE = "batch-0192f0c1a5"


class OutputExpiry(BaseModel):
    """How long a batch's files are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(ge=1, lt=10**12)


class CreateBatchBody(CreateBatchRequest):
    """What a new batch is made from, and how long its files are kept."""

    output_expires_after: OutputExpiry | None = None


@router.post("", response_model=BatchResponse, responses=documented(409))
def create_batch(
    body: CreateBatchBody,
    client: Here,
    idempotency_key: Annotated[
        str | None, Header(description="The same key and body give the same batch again.")
    ] = None,
) -> Response:
    """Make a batch of an uploaded file's requests, and run it."""
    kept = body.output_expires_after
    batch = client.batches.create(
        **body.model_dump(exclude={"output_expires_after"}),
        output_expires_after=None if kept is None else Expiry(anchor=kept.anchor, seconds=kept.seconds),
        idempotency_key=idempotency_key,
    )
    return written(batch)


@router.get("", response_model=BatchListResponse, responses=documented())
def list_batches(query: Annotated[ListBatchesQuery, Query()], client: Here) -> Response:
    """List batches, newest first."""
    return json_answer(client.batches.list(**query.model_dump()).to_json())


@router.get("/{batch_id}", response_model=BatchResponse, responses=documented())
def retrieve_batch(batch_id: str, query: Annotated[Included, Query()], client: Here) -> Response:
    """Tell about a batch."""
    batch = client.batches.retrieve(batch_id, include=query.include or "")
    if query.with_analytics and batch.analytics is None and batch.status in ACTIVE:
        so_far = client.batches.analytics(batch_id)
        batch = batch.model_copy(update={"analytics": so_far, "usage": BatchUsage.of(so_far)})
    return written(batch)


@router.get("/{batch_id}/analytics", response_model=BatchAnalytics, responses=documented())
def read_analytics(batch_id: str, client: Here) -> Response:
    """Give the figures of a batch; while it runs, those of what is settled so far."""
    return written(client.batches.analytics(batch_id))


@router.get(
    "/{batch_id}/results",
    response_class=Response,
    responses={
        **documented(),
        200: streamed_as(LINES, "A `BatchResultItem` for each request, in input order."),
    },
)
def read_results(batch_id: str, query: Annotated[BatchResultsQuery, Query()], client: Here) -> Response:
    """Tell what became of each request, also while the batch runs; each line is a `BatchResultItem`."""
    lines = _lines(client.batches.result_texts(batch_id, **query.model_dump()))
    first = next(lines, b"")
    return StreamingResponse(in_turn(chain([first], lines)), media_type=LINES)


def _lines(results: Iterator[Result]) -> Iterator[bytes]:
    """The results as lines, some at a time; few if their bodies are long."""
    held: list[bytes] = []
    size = 0
    for result in results:
        held.append(result.to_line())
        size += len(held[-1])
        if len(held) >= ITEMS_AT_ONCE or size >= BLOCK_BYTES:
            yield b"".join(held) if len(held) > 1 else held[0]
            held, size = [], 0
    yield b"".join(held)


async def deleted(client: Batchline, batch_id: str) -> None:
    """Delete the batch as `Batches.delete` does, without a thread that waits for its runner to end."""
    deadline = time.monotonic() + client.batches.deletion_patience_s
    while (reason := await run_aside(client.batches.delete_if_idle, batch_id)) is not None:
        if time.monotonic() >= deadline:
            raise reason
        await asyncio.sleep(POLL_S)


@router.post("/{batch_id}/cancel", response_model=BatchResponse, responses=documented(409))
def cancel_batch(batch_id: str, client: Here) -> Response:
    """Cancel a batch; what was answered is kept."""
    return written(client.batches.cancel(batch_id))


@router.post("/{batch_id}/retry", response_model=BatchResponse, responses=documented(409))
def retry_batch(batch_id: str, client: Here) -> Response:
    """Try all failed, expired and cancelled requests of a finished batch again."""
    return written(client.batches.retry(batch_id))


@router.post("/{batch_id}/retry-requests", response_model=BatchResponse, responses=documented(409))
def retry_requests(batch_id: str, body: RetryRequestsRequest, client: Here) -> Response:
    """Try those requests of a finished batch again."""
    return written(client.batches.retry_requests(batch_id, body.request_ids))


@router.delete("/{batch_id}", response_model=Deleted, responses=documented(409))
async def delete_batch(batch_id: str, client: Here) -> Response:
    """Delete a batch with its output and error files; one that runs is cancelled first."""
    await deleted(client, batch_id)
    return written(Deleted(id=batch_id, object="batch"))

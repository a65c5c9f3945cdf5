"""What clients ask again and again while their batches run: `GET /v1/batches` and `GET /v1/batches/{id}`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from batchline.api.answers import json_answer
from batchline.api.blocks import Blocks
from batchline.api.errors import documented
from batchline.api.places import run_aside
from batchline.api.quick import QuickRoute
from batchline.models.batches import BatchListResponse, BatchResponse, BatchUsage, Included, ListBatchesQuery
from batchline.models.status import ACTIVE, BatchStatus
from batchline.operations.polling import AskedBatch, AskedPage, batches_json, pages_json

router = APIRouter(prefix="/v1/batches", tags=["Batches"], route_class=QuickRoute)


class Reads:
    """Reads of batches for all clients of an app."""

    def __init__(self) -> None:
        self.batches: Blocks[AskedBatch, str] = Blocks(batches_json)
        self.pages: Blocks[AskedPage, str] = Blocks(pages_json)

    def close(self) -> None:
        """Let their threads end."""
        self.batches.close()
        self.pages.close()


@router.get("", response_model=BatchListResponse, responses=documented())
async def list_batches(request: Request, query: Annotated[ListBatchesQuery, Query()]) -> Response:
    """List batches, newest first."""
    asked = AskedPage(request.state.visitor.client, query)
    if query.search is not None:  # which may take long: it is for nobody else to wait for
        return json_answer(await run_aside(_searched, asked))
    reads: Reads = request.app.state.reads
    return json_answer(await reads.pages.ask(asked))


@router.get("/{batch_id}", response_model=BatchResponse, responses=documented())
async def retrieve_batch(request: Request, batch_id: str, query: Annotated[Included, Query()]) -> Response:
    """Tell about a batch."""
    reads: Reads = request.app.state.reads
    asked = AskedBatch(request.state.visitor.client, batch_id, query.with_analytics)
    text = await reads.batches.ask(asked)
    if query.with_analytics and _runs(text):
        text = await run_aside(_with_analytics_so_far, text, asked)
    return json_answer(text)


class _Shown(msgspec.Struct):
    status: BatchStatus
    analytics: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Shown).decode


def _runs(text: str) -> bool:
    """True for a batch that is not over and has no analytics of an earlier end."""
    shown = _decode(text)
    return not shown.analytics and shown.status in ACTIVE


def _with_analytics_so_far(text: str, asked: AskedBatch) -> str:
    """Return the batch with the analytics and the usage of what is settled so far."""
    found = asked.client.batches.analytics(asked.batch_id)
    usage = BatchUsage.of(found).model_dump_json()
    return f'{text[:-1]},"usage":{usage},"analytics":{found.model_dump_json()}}}'


def _searched(asked: AskedPage) -> str:
    (found,) = pages_json([asked])
    if isinstance(found, Exception):
        raise found
    return found

"""Whether the server is well, for those who start and watch it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from batchline.api.answers import Here, json_answer
from batchline.api.errors import documented
from batchline.api.metrics import MEDIA_TYPE, metrics_of
from batchline.operations import Batchline

router = APIRouter(tags=["Health"])

OK = '{"status":"ok"}'


class Health(BaseModel):
    """That all is well."""

    status: Literal["ok"]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=Health, responses=documented())
async def healthz() -> Response:
    """Tell that the server runs."""
    return json_answer(OK)


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Health, responses=documented())
def readyz(request: Request) -> Response:
    """Tell that storage and the database answer."""
    client: Batchline = request.app.state.client
    client.check()
    return json_answer(OK)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**documented(), 200: {"description": "Figures.", "content": {"text/plain": {}}}},
)
def metrics(client: Here) -> Response:
    """Give figures as Prometheus reads them."""
    return Response(metrics_of(client), media_type=MEDIA_TYPE)

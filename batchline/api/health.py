"""Whether the server is well, for those who start and watch it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from batchline.api.answers import Here, json_answer
from batchline.api.errors import documented
from batchline.api.metrics import MEDIA_TYPE, metrics_of
from batchline.api.places import FairRoute
from batchline.models.errors import StorageFault
from batchline.operations import Batchline

router = APIRouter(tags=["Health"], route_class=FairRoute)

OK = '{"status":"ok"}'


REMEMBERED_S: Final = 1.0
PATIENCE_S: Final = 5.0
"""Seconds that storage and the database may take; a monitor waits no longer either."""


class Readiness:
    """Asks storage and the database once for all who want to know: anyone may ask, without a key."""

    def __init__(self, client: Batchline) -> None:
        self._client = client
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._check: asyncio.Future[None] | None = None
        self._ended_at = float("-inf")

    async def check(self) -> None:
        """Raise `StorageFault` unless both answer in time, or have a moment ago."""
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() - self._ended_at > REMEMBERED_S):
            self._check = loop.run_in_executor(self._thread, self._client.check)
            self._check.add_done_callback(self._note)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(self._check)
        except TimeoutError:
            raise StorageFault(f"storage and the database have not answered within {PATIENCE_S:g} s") from None

    def _note(self, check: asyncio.Future[None]) -> None:
        self._ended_at = check.get_loop().time()
        if not check.cancelled():
            check.exception()  # seen, also if nobody waits for it any more

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False)


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
async def readyz(request: Request) -> Response:
    """Tell that storage and the database answer."""
    readiness: Readiness = request.app.state.readiness
    await readiness.check()
    return json_answer(OK)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**documented(), 200: {"description": "Figures.", "content": {"text/plain": {}}}},
)
def metrics(client: Here) -> Response:
    """Give figures as Prometheus reads them."""
    return Response(metrics_of(client), media_type=MEDIA_TYPE)

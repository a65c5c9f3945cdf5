"""Health checks and metrics for monitoring."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from batchline.api.concurrency import FairRoute
from batchline.api.errors import openapi_errors
from batchline.api.metrics import MEDIA_TYPE, render_metrics
from batchline.api.responses import CurrentClient, model_response
from batchline.client import Batchline
from batchline.models.base import WireModel
from batchline.models.errors import StorageFault

router = APIRouter(tags=["Health"], route_class=FairRoute)

CACHE_TTL_S: Final = 1.0
CHECK_TIMEOUT_S: Final = 5.0
"""Seconds that storage and the database may take; monitors do not wait longer either."""


class ReadinessCheck:
    """Checks storage and the database once for all concurrent callers, who need no key."""

    def __init__(self, client: Batchline) -> None:
        self._client = client
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._pending_check: asyncio.Future[None] | None = None
        self._ended_at = float("-inf")

    async def check(self) -> None:
        """Raise `StorageFault` unless both respond in time, or did so a moment ago."""
        loop = asyncio.get_running_loop()
        if self._pending_check is None or (
            self._pending_check.done() and loop.time() - self._ended_at > CACHE_TTL_S
        ):
            self._pending_check = loop.run_in_executor(self._thread, self._client.check_storage)
            self._pending_check.add_done_callback(self._record_end)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                # One caller's timeout must not cancel the check for the others.
                await asyncio.shield(self._pending_check)
        except TimeoutError:
            raise StorageFault(
                f"storage and the database have not answered within {CHECK_TIMEOUT_S:g} s"
            ) from None

    def _record_end(self, check: asyncio.Future[None]) -> None:
        self._ended_at = check.get_loop().time()
        if not check.cancelled():
            check.exception()  # marks it as retrieved, even if all callers have timed out

    def close(self) -> None:
        """Shut down the thread."""
        self._thread.shutdown(wait=False)


class Health(WireModel):
    """The server is healthy."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", response_model=Health, responses=openapi_errors())
async def healthz() -> Response:
    """Return ok if the server runs."""
    return model_response(Health())


@router.get("/readyz", response_model=Health, responses=openapi_errors())
async def readyz(request: Request) -> Response:
    """Return ok if storage and the database respond."""
    readiness: ReadinessCheck = request.app.state.readiness
    await readiness.check()
    return model_response(Health())


@router.get(
    "/metrics",
    response_class=Response,
    responses={**openapi_errors(), 200: {"description": "Figures.", "content": {"text/plain": {}}}},
)
def metrics(client: CurrentClient) -> Response:
    """Return metrics in Prometheus's format."""
    return Response(render_metrics(client), media_type=MEDIA_TYPE)

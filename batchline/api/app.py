"""The application: routes, who comes in, how errors look, and what lives as long as it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from batchline.api import batches, files, health, models
from batchline.api.bounds import Bounds
from batchline.api.door import OPEN_PATHS, Door, Doorkeeper
from batchline.api.errors import HEADERS, handle_errors
from batchline.api.methods import HeadAnswers
from batchline.api.places import POOL
from batchline.api.request_ids import DESCRIBED, IdentifyingApp
from batchline.api.upload import Uploads
from batchline.models.batches import BatchResultItem
from batchline.operations import Batchline
from batchline.operations.keeper import Keeper


def create_app(client: Batchline, *, open_without_keys: bool = False) -> FastAPI:
    """The API over that client, which is closed with it; batches run where its run.

    `open_without_keys` lets in whoever asks at a loopback address, until a key is made.
    """
    app = IdentifyingApp(
        title="batchline",
        description="OpenAI's Files and Batches API, over any OpenAI-compatible server.",
        version=version("batchline"),
        lifespan=_living,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.client = client
    app.state.uploads = Uploads()
    app.state.readiness = health.Readiness(client)
    app.state.door = Door(client, open_without_keys=open_without_keys)
    for room in (files, batches, models, health):
        app.include_router(room.router)
    handle_errors(app)
    app.add_middleware(Bounds)
    app.add_middleware(Doorkeeper, door=app.state.door)
    app.add_middleware(HeadAnswers)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    """Go on with the batches that wait, and stop those that run at the end; they can go on later."""
    client: Batchline = app.state.client
    try:
        to_thread.current_default_thread_limiter().total_tokens = POOL
        with Keeper(client):
            yield
    finally:
        app.state.readiness.close()
        await asyncio.to_thread(client.close)


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with keys, and without the framework's own form of errors."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        reference = "#/components/schemas/{model}"
        line = BatchResultItem.model_json_schema(mode="serialization", ref_template=reference)
        schemas |= {**line.pop("$defs", {}), "BatchResultItem": line}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, routes in document["paths"].items():
            for route in routes.values():
                route["responses"].pop("422", None)
                route["security"] = [] if path in OPEN_PATHS else [{"key": []}]
                for status, answer in route["responses"].items():
                    answer["headers"] = answer.get("headers", {}) | DESCRIBED | HEADERS.get(status, {})
        app.openapi_schema = document
    return app.openapi_schema

"""The ASGI application: routes, authentication, error format, and resources tied to its lifetime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from batchline.api import batches, files, health, models
from batchline.api.auth import OPEN_PATHS, Authenticator, AuthMiddleware
from batchline.api.concurrency import TOTAL_THREADS
from batchline.api.errors import STATUS_HEADERS, register_error_handlers
from batchline.api.http_methods import HeadMiddleware
from batchline.api.request_ids import REQUEST_ID_HEADERS, RequestIdApp
from batchline.api.request_limits import RequestLimitsMiddleware
from batchline.api.upload import UploadHandler
from batchline.client import Batchline
from batchline.client.maintenance import MaintenanceThread
from batchline.models.batches import BatchResultItem


def create_app(client: Batchline, *, allow_anonymous: bool = False) -> FastAPI:
    """Return the API over that client. The app closes the client on shutdown.

    `allow_anonymous` serves requests to a loopback address without a key until the first key is created.
    """
    app = RequestIdApp(
        title="batchline",
        description="OpenAI's Files and Batches API, over any OpenAI-compatible server.",
        version=version("batchline"),
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.client = client
    app.state.uploads = UploadHandler()
    app.state.readiness = health.ReadinessCheck(client)
    app.state.authenticator = Authenticator(client, allow_anonymous=allow_anonymous)
    for module in (files, batches, models, health):
        app.include_router(module.router)
    register_error_handlers(app)
    # The last added runs first: limits need the member that authentication finds.
    app.add_middleware(RequestLimitsMiddleware)
    app.add_middleware(AuthMiddleware, authenticator=app.state.authenticator)
    app.add_middleware(HeadMiddleware)
    app.openapi = lambda: _openapi_document(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run maintenance while serving, then stop running batches; they can be resumed."""
    client: Batchline = app.state.client
    try:
        to_thread.current_default_thread_limiter().total_tokens = TOTAL_THREADS
        with MaintenanceThread(client):
            yield
    finally:
        app.state.readiness.close()
        await asyncio.to_thread(client.close)


def _openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with security schemes and without FastAPI's own error schemas."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        reference = "#/components/schemas/{model}"
        line_schema = BatchResultItem.model_json_schema(mode="serialization", ref_template=reference)
        schemas |= {**line_schema.pop("$defs", {}), "BatchResultItem": line_schema}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, routes in document["paths"].items():
            for route in routes.values():
                route["responses"].pop("422", None)
                route["security"] = [] if path in OPEN_PATHS else [{"key": []}]
                for status, response in route["responses"].items():
                    response["headers"] = (
                        response.get("headers", {}) | REQUEST_ID_HEADERS | STATUS_HEADERS.get(status, {})
                    )
        app.openapi_schema = document
    return app.openapi_schema

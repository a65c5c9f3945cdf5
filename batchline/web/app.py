"""The ASGI application that serves the web pages besides the API."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.auth import MANAGER_PATHS, OPEN_PATHS
from batchline.api.http_methods import HeadMiddleware
from batchline.api.request_ids import RequestIdApp
from batchline.api.request_limits import RequestLimitsMiddleware
from batchline.web import batch, batch_list, files, new_batch, results, sign_in, static_files
from batchline.web.errors import register_error_handlers
from batchline.web.session import SessionMiddleware
from batchline.web.validation_cache import ValidationCache

API_PATHS: Final = OPEN_PATHS | MANAGER_PATHS
UPLOAD_PATHS: Final = frozenset({"/new"})


class PathRouter:
    """Routes each request to the API or to the pages, by its path."""

    def __init__(self, api: ASGIApp, pages: ASGIApp) -> None:
        self._api = api
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        path = scope.get("path", "")
        is_api = scope["type"] != "http" or path == "/v1" or path.startswith("/v1/") or path in API_PATHS
        await (self._api if is_api else self._pages)(scope, receive, send)


def with_pages(api: FastAPI) -> ASGIApp:
    """Return the API combined with the pages, which share its authentication and rate limits."""
    pages = RequestIdApp(openapi_url=None, docs_url=None, redoc_url=None)
    pages.state.authenticator = api.state.authenticator
    pages.state.uploads = api.state.uploads
    pages.state.validation_cache = ValidationCache()
    for module in (static_files, sign_in, batch_list, new_batch, files, results, batch):
        pages.include_router(module.router)
    register_error_handlers(pages)
    # The last added runs first: limits need the member that the session finds.
    pages.add_middleware(RequestLimitsMiddleware, upload_paths=UPLOAD_PATHS)
    pages.add_middleware(SessionMiddleware, authenticator=api.state.authenticator)
    pages.add_middleware(HeadMiddleware)
    return PathRouter(api, pages)

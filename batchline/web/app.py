"""The pages before the API: which of them answers, and what the pages are made of."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.bounds import Bounds
from batchline.api.door import FOR_MANAGERS, OPEN_PATHS
from batchline.api.methods import HeadAnswers
from batchline.api.request_ids import IdentifyingApp
from batchline.operations import Batchline
from batchline.operations.progress import Watch
from batchline.web import batch, create, files, listing, results, signing, static
from batchline.web.checks import Checks
from batchline.web.errors import handle_errors
from batchline.web.gate import Gate

OF_THE_API: Final = OPEN_PATHS | FOR_MANAGERS
TAKES_FILES: Final = frozenset({"/new"})


class Front:
    """Hands every request to the API or to the pages, by its path."""

    def __init__(self, api: ASGIApp, pages: ASGIApp) -> None:
        self._api = api
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        is_page = scope["type"] == "http" and not _is_of_the_api(scope["path"])
        await (self._pages if is_page else self._api)(scope, receive, send)


def _is_of_the_api(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/") or path in OF_THE_API


def with_pages(api: FastAPI) -> ASGIApp:
    """The API with the pages beside it, which let in whom it lets in, as often."""
    client: Batchline = api.state.client
    pages = IdentifyingApp(openapi_url=None, docs_url=None, redoc_url=None)
    pages.state.door = api.state.door
    pages.state.uploads = api.state.uploads
    pages.state.checks = Checks()
    pages.state.watch = Watch(client.engine)
    for room in (static, signing, listing, create, files, results, batch):
        pages.include_router(room.router)
    handle_errors(pages)
    pages.add_middleware(Bounds, takes_files=TAKES_FILES.__contains__)
    pages.add_middleware(Gate, door=api.state.door)
    pages.add_middleware(HeadAnswers)
    return Front(api, pages)

"""HTTP methods: HEAD wherever GET is allowed, and the methods that a path allows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _HeadersSentError(Exception):
    """Stops an app that continues to stream a body to a HEAD request."""


class HeadMiddleware:
    """Answers HEAD like GET without the body; a streamed body is not read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_ended = False

        async def send_headers(message: Message) -> None:
            nonlocal is_ended
            if message["type"] == "http.response.start":
                await send(message)
                return
            if not is_ended:
                is_ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _HeadersSentError

        with suppress(_HeadersSentError):
            # The server's own scope still says HEAD, so that it announces the body's length and sends none.
            await self._app({**scope, "method": "GET"}, receive, send_headers)


def allowed_methods(document: Mapping[str, Any], path: str) -> str | None:
    """Return the path's methods in the OpenAPI document as an Allow header; None if it lacks the path."""
    methods: set[str] = set()
    for template, operations in document["paths"].items():
        pattern, _, _ = compile_path(template)
        if pattern.match(path):
            methods |= {name.upper() for name in operations}
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods)) or None

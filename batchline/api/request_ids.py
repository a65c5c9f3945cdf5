"""A request id in the `x-request-id` response header, as OpenAI's clients expect, and in the log."""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from typing import Final

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

request_id: ContextVar[str] = ContextVar("request_id", default="req_none")
"""Id of the current request."""

REQUEST_ID_HEADERS: Final = {
    "x-request-id": {
        "description": "The request's id, which is also in the server's log.",
        "schema": {"type": "string"},
    }
}
"""The header, for the OpenAPI document."""


class RequestIdApp(FastAPI):
    """A FastAPI app that adds the request's id to every response, including errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        assigned_id = f"req_{secrets.token_hex(16)}"
        request_id.set(assigned_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", assigned_id.encode())]
            await send(message)

        # Outside all middleware, since Starlette's handler of unexpected errors is the outermost.
        await super().__call__(scope, receive, send_with_id)

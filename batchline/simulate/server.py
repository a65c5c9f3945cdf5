"""The stand-in's server: one asyncio protocol on httptools, fast enough not to be what a benchmark measures."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from math import ceil
from typing import Any

import httptools

from batchline.simulate.answers import Rendered, decode, digest, error, render, with_separators
from batchline.simulate.faults import SEPARATORS, Fault
from batchline.simulate.options import SimulatorOptions
from batchline.simulate.state import State

HTML = b"<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"
HEAD = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nx-request-id: sim-%x\r\n%bcontent-length: %d\r\n\r\n"
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def serve(
    options: SimulatorOptions, *, ready: Callable[[str], None] | None = None, with_parent: bool = False
) -> None:
    """Serve until interrupted; `ready` is told the base URL. `with_parent`: end when standard input closes."""
    with contextlib.suppress(KeyboardInterrupt):
        _run(_serve(options, ready, with_parent=with_parent))


def _run(main: Any) -> None:
    try:
        import uvloop  # noqa: PLC0415 - not to be had on every system
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _serve(options: SimulatorOptions, ready: Callable[[str], None] | None, *, with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    state = State(options)
    server = await loop.create_server(lambda: Connection(state), options.host, options.port, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    over = asyncio.Event()
    if with_parent:
        loop.add_reader(sys.stdin.fileno(), _parent_gone, over)
    if ready is not None:
        ready(f"http://{options.host}:{port}/v1")
    if options.down_from_s is not None:
        loop.call_later(options.down_from_s, lambda: asyncio.ensure_future(_outage(state, server, port)))
    await over.wait()


def _parent_gone(over: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        over.set()


async def _outage(state: State, server: asyncio.Server, port: int) -> None:
    """Refuse and close connections for a while."""
    server.close()
    for connection in list(state.connections):
        connection.abort()
    await asyncio.sleep(state.options.down_for_s)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(state), state.options.host, port, backlog=4096)


class Connection(asyncio.Protocol):
    """One client's connection; answers go out in the order of the requests."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[str, str, bytes, str | None, bool]] = deque()
        self._busy = self._counted = self._keep_alive = False
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._pieces: list[bytes] = []
        self._key: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment] # a server's is one
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        self._transport = None
        self._state.connections.discard(self)
        self._leave()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("no other protocol than HTTP/1.1 is spoken here; send no Upgrade header")
        except httptools.HttpParserError:
            self._refuse("this is no HTTP")

    def _refuse(self, why: str) -> None:
        """Tell a client that cannot be understood, and close."""
        self._keep_alive = False
        if self._busy:
            self.abort()
        else:
            self._reply(400, error(why, "invalid_request_error"))

    def on_url(self, url: bytes) -> None:
        """Parser callback."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser callback."""
        lower = name.lower()
        if lower == b"authorization":
            self._key = value.decode("latin-1").removeprefix("Bearer ")
        elif lower == b"x-api-key":
            self._key = value.decode("latin-1")
        elif lower == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Parser callback."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Parser callback: a request is whole."""
        path = self._url.decode("latin-1").partition("?")[0]
        method = self._parser.get_method().decode()
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._parser.should_upgrade():
            return  # The parser has skipped the body.
        self._waiting.append((method, path, body, self._key, self._parser.should_keep_alive()))
        self._begin()
        self._proceed()

    def _proceed(self) -> None:
        """Handle what waits, until a request takes its time."""
        while self._waiting and not self._busy and self._transport is not None:
            self._busy = True
            self._handle(*self._waiting.popleft())

    def _handle(self, method: str, path: str, body: bytes, key: str | None, keep_alive: bool) -> None:
        self._keep_alive = keep_alive
        if method == "POST" and path.startswith("/v1/"):
            self._complete(path, body, key)
        else:
            self._small(method, path)

    def _small(self, method: str, path: str) -> None:
        """What is not a model's answer."""
        state = self._state
        if path == "/simulator/reset" and method == "POST":
            state.reset()
            self._reply(200, b"{}")
        elif path == "/simulator/counters":
            self._reply(200, json.dumps(state.counters()).encode())
        elif path == "/healthz":
            self._reply(200, b'{"status":"ok"}')
        elif path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in state.options.models or ("stand-in",)]
            self._reply(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self._reply(404, error(f"no such path: {path}", "invalid_request_error"))

    def _complete(self, path: str, body: bytes, key: str | None) -> None:
        state = self._state
        number = digest(body)
        state.received += 1
        state.bytes_received += len(body)
        state.paths[path] += 1
        state.seen[number] += 1
        state.note("received", body)
        refusal = self._refusal(key)
        if refusal is not None:
            self._count_and_reply(*refusal)
            return
        dice = state.fate.dice(number, state.seen[number])
        fault: str | None = state.fate.fault(dice)
        ordered = state.fate.ordered(body)
        status = None
        if ordered is not None:
            fault, status = ordered
        latency_s = state.fate.latency_s(dice)
        self._enter()
        if latency_s:
            wait_s = latency_s * state.options.first_byte_share
            asyncio.get_running_loop().call_later(
                wait_s, self._answer_later, path, body, number, fault, status, latency_s - wait_s
            )
        else:
            self._answer(path, body, number, fault, status, 0.0)

    def _enter(self) -> None:
        state = self._state
        self._counted = True
        state.now_open += 1
        state.most_at_once = max(state.most_at_once, state.now_open)

    def _leave(self) -> None:
        """Count the connection's request as open no more."""
        if self._counted:
            self._counted = False
            self._state.now_open -= 1

    def _refusal(self, key: str | None) -> tuple[int, bytes, bytes] | None:
        """Why a request is not even looked at."""
        state, options = self._state, self._state.options
        if state.key is not None and key != state.key:
            return 401, error("Incorrect API key provided", "authentication_error", "invalid_api_key"), b""
        if options.max_concurrent is not None and state.now_open >= options.max_concurrent:
            return 503, error("The server is overloaded", "server_error"), b""
        wait_s = state.requests.take(1)
        if wait_s is not None:
            return 429, error("Rate limit reached: requests", "requests"), self._retry_after(wait_s)
        return None

    def _retry_after(self, wait_s: float) -> bytes:
        kind = self._state.options.retry_after
        if kind == "none":
            return b""
        if kind == "ms":
            return b"retry-after-ms: %d\r\n" % round(wait_s * 1e3)
        if kind == "date":
            # Dates have whole seconds; one that is cut off would be too early.
            return b"retry-after: %b\r\n" % formatdate(ceil(time.time() + wait_s), usegmt=True).encode()
        return b"retry-after: %b\r\n" % f"{wait_s:.3f}".encode()

    def _answer_later(
        self, path: str, body: bytes, number: int, fault: str | None, status: int | None, rest_s: float
    ) -> None:
        self._answer(path, body, number, fault, status, rest_s)
        self._proceed()

    def _answer(
        self, path: str, body: bytes, number: int, fault: str | None, status: int | None, rest_s: float
    ) -> None:
        if self._transport is None:
            self._state.abandoned += 1
            return
        if fault is not None:
            self._state.faults[fault] += 1
            if self._misbehave(fault, status):
                return
        try:
            request = decode(body)
            rendered = render(path, request, number, self._state.options.answer_tokens)
        except (ValueError, RecursionError) as wrong:
            self._count_and_reply(400, error(f"bad body: {wrong}", "invalid_request_error"))
            return
        if rendered is None or (self._state.options.models and request.model not in self._state.options.models):
            self._count_and_reply(404, error(f"{path} {request.model} is not served", "invalid_request_error"))
            return
        self._state.models[request.model] += 1
        wait_s = self._state.tokens.take(rendered.prompt_tokens + rendered.completion_tokens)
        if wait_s is not None:
            self._count_and_reply(429, error("Rate limit reached: tokens", "tokens"), self._retry_after(wait_s))
        else:
            self._succeed(rendered, body, number, fault, rest_s)

    def _misbehave(self, fault: str, status: int | None) -> bool:
        """Do what the fault says; false where it only spoils a good answer."""
        if fault == Fault.RATE_LIMITED:
            headers = self._retry_after(self._state.options.retry_after_s)
            self._count_and_reply(429, error("Rate limit reached", "requests", "rate_limit_exceeded"), headers)
        elif fault == Fault.SERVER_ERROR:
            self._count_and_reply(500, error("The server had an error", "server_error"))
        elif fault == Fault.UNAVAILABLE:
            self._count_and_reply(503, error("The server is overloaded", "server_error"))
        elif fault == "status" and status:
            self._count_and_reply(status, error(f"status {status} as ordered", "invalid_request_error"))
        elif fault == Fault.DROPPED:
            self.abort()
        elif fault == Fault.HTML:
            self._count_and_reply(200, HTML, kind=b"text/html")
        elif fault == Fault.ERROR_OBJECT:
            self._count_and_reply(200, error("The model crashed", "server_error"))
        else:
            return fault == Fault.HANGING
        return True

    def _succeed(self, rendered: Rendered, body: bytes, number: int, fault: str | None, rest_s: float) -> None:
        state = self._state
        if fault == Fault.TRUNCATED:
            self._count_and_reply(200, rendered.body[: len(rendered.body) // 2])
            return
        if fault == Fault.CUT_OFF:
            self._write(200, rendered.body, b"", cut=len(rendered.body) // 2)
            self._close()
            return
        if fault == SEPARATORS:
            rendered = with_separators(rendered)
        state.prompt_tokens += rendered.prompt_tokens
        state.completion_tokens += rendered.completion_tokens
        state.answered[number] += 1
        state.note("answered", body)
        state.statuses[200] += 1
        if rest_s:
            self._write(200, rendered.body, b"", cut=0)
            asyncio.get_running_loop().call_later(rest_s, self._finish, rendered.body)
        else:
            self._reply(200, rendered.body)

    def _count_and_reply(
        self, status: int, body: bytes, headers: bytes = b"", kind: bytes = b"application/json"
    ) -> None:
        self._state.statuses[status] += 1
        self._reply(status, body, headers, kind)

    def _reply(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = b"application/json") -> None:
        self._write(status, body, headers, kind)
        self._done()

    def _write(
        self, status: int, body: bytes, headers: bytes, kind: bytes = b"application/json", cut: int | None = None
    ) -> None:
        if self._transport is None:
            return
        reason = REASONS.get(status, b"Status")
        self._state.replies += 1
        head = HEAD % (status, reason, kind, self._state.replies, headers, len(body))
        self._transport.write(head + (body if cut is None else body[:cut]))

    def _finish(self, rest: bytes) -> None:
        if self._transport is not None:
            self._transport.write(rest)
        self._done()
        self._proceed()

    def _done(self) -> None:
        self._leave()
        self._busy = False
        if not self._keep_alive:
            self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

"""The simulator's server: one asyncio protocol on httptools, fast enough not to limit a benchmark."""

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import httptools

from batchline.simulate.fault_injection import UnknownFault
from batchline.simulate.fault_kinds import FAULT_KINDS, FaultOutcome
from batchline.simulate.options import SimulatorOptions
from batchline.simulate.replies import (
    SimulatedReply,
    decode_request,
    digest_body,
    error_body,
    render_reply,
)
from batchline.simulate.state import HttpRequest, SimulatorState
from batchline.simulate.wire_replies import RETRY_AFTER_FORMS, WireReply


def serve(
    options: SimulatorOptions, *, on_ready: Callable[[str], None] | None = None, exit_with_parent: bool = False
) -> None:
    """Serve until interrupted, or with `exit_with_parent` until stdin closes. `on_ready` receives the base URL."""
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with contextlib.suppress(ImportError):  # uvloop is not available on every system
        import uvloop  # noqa: PLC0415

        run = uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        run(_serve_until_stopped(options, on_ready, exit_with_parent=exit_with_parent))


async def _serve_until_stopped(
    options: SimulatorOptions, on_ready: Callable[[str], None] | None, *, exit_with_parent: bool
) -> None:
    loop = asyncio.get_running_loop()
    state = SimulatorState(options)
    server = await loop.create_server(lambda: SimulatorConnection(state), options.host, options.port, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    stopped = asyncio.Event()

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            stopped.set()

    if exit_with_parent:
        loop.add_reader(sys.stdin.fileno(), on_stdin)
    if on_ready is not None:
        on_ready(f"http://{options.host}:{port}/v1")
    if options.down_from_s is not None:
        loop.call_later(options.down_from_s, lambda: asyncio.ensure_future(_simulate_outage(state, server, port)))
    await stopped.wait()


async def _simulate_outage(state: SimulatorState, server: asyncio.Server, port: int) -> None:
    """Refuse and close connections for a while."""
    server.close()
    for connection in list(state.connections):
        connection.abort()
    await asyncio.sleep(state.options.down_for_s)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: SimulatorConnection(state), state.options.host, port, backlog=4096)


class SimulatorConnection(asyncio.Protocol):
    """One client's connection; answers are sent in the order of the requests."""

    def __init__(self, state: SimulatorState) -> None:
        self._state = state
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._pending: deque[HttpRequest] = deque()
        self._is_busy = self._is_counted = self._keep_alive = False
        self._reset_request()

    def _reset_request(self) -> None:
        self._url = b""
        self._body_parts: list[bytes] = []
        self._api_key: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        if self._transport is not None:
            self._state.connections.discard(self._transport)
        self._transport = None
        self._count_closed()

    def _abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._reject_protocol("only HTTP/1.1 is supported; send no Upgrade header")
        except httptools.HttpParserError:
            self._reject_protocol("this is not HTTP")

    def _reject_protocol(self, message: str) -> None:
        """Send an error to a client that does not speak HTTP/1.1, and close."""
        self._keep_alive = False
        # An earlier answer is still due on this connection, so an error now would be taken for it.
        if self._is_busy:
            self._abort()
        else:
            self._send_reply(400, error_body(message, "invalid_request_error"))

    def on_url(self, url: bytes) -> None:
        """Collect the URL, which may arrive in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header."""
        lower_name = name.lower()
        if lower_name == b"authorization":
            self._api_key = value.decode("latin-1").removeprefix("Bearer ")
        elif lower_name == b"x-api-key":
            self._api_key = value.decode("latin-1")
        elif lower_name == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body_parts.append(body)

    def on_message_complete(self) -> None:
        """Queue the complete request."""
        if self._parser.should_upgrade():
            return  # the parser has skipped the body
        method, path = self._parser.get_method().decode(), self._url.decode("latin-1").partition("?")[0]
        body = self._body_parts[0] if len(self._body_parts) == 1 else b"".join(self._body_parts)
        self._pending.append(
            HttpRequest(method, path, body, self._api_key, self._parser.should_keep_alive(), digest_body(body))
        )
        self._reset_request()
        self._handle_pending()

    def _handle_pending(self) -> None:
        """Handle queued requests until one has to wait."""
        while self._pending and not self._is_busy and self._transport is not None:
            self._is_busy = True
            request = self._pending.popleft()
            self._keep_alive = request.keep_alive
            if request.method == "POST" and request.path.startswith("/v1/"):
                self._handle_completion(request)
            else:
                self._handle_control(request.method, request.path)

    def _handle_control(self, method: str, path: str) -> None:
        """Answer a request that is not for a model."""
        state = self._state
        if path == "/simulator/reset" and method == "POST":
            state.reset()
            self._send_reply(200, b"{}")
        elif path == "/simulator/counters":
            self._send_reply(200, json.dumps(state.counters()).encode())
        elif path == "/healthz":
            self._send_reply(200, b'{"status":"ok"}')
        elif path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in state.options.models or ("stand-in",)]
            self._send_reply(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self._send_reply(404, error_body(f"no such path: {path}", "invalid_request_error"))

    def _handle_completion(self, request: HttpRequest) -> None:
        state, options = self._state, self._state.options
        state.count_received(request)
        if state.api_key is not None and request.api_key != state.api_key:
            error = error_body("Incorrect API key provided", "authentication_error", "invalid_api_key")
            self._count_and_reply(401, error)
            return
        if options.max_concurrent is not None and state.open_requests >= options.max_concurrent:
            self._count_and_reply(503, error_body("The server is overloaded", "server_error"))
            return
        if (wait_s := state.request_limit.acquire(1)) is not None:
            self._count_and_reply(429, error_body("Rate limit reached: requests", "requests"), wait_s)
            return
        occurrence = state.received_bodies[request.digest]
        rng = state.fault_injector.rng_for(request.digest, occurrence)
        try:
            fault, status = state.fault_injector.choose_fault(request.body, occurrence, rng)
        except UnknownFault as error:
            self._count_and_reply(400, error_body(str(error), "invalid_request_error"))
            return
        latency_s = state.fault_injector.draw_latency_s(rng)
        self._is_counted = True
        state.open_requests += 1
        state.max_open_requests = max(state.max_open_requests, state.open_requests)
        if latency_s:
            wait_s = latency_s * options.first_byte_share
            answer_delayed = partial(self._answer_delayed, request, fault, status, latency_s - wait_s)
            asyncio.get_running_loop().call_later(wait_s, answer_delayed)
        else:
            self._answer_request(request, fault, status, 0.0)

    def _answer_delayed(
        self, request: HttpRequest, fault: str | None, status: int | None, remaining_s: float
    ) -> None:
        self._answer_request(request, fault, status, remaining_s)
        self._handle_pending()

    def _answer_request(
        self, request: HttpRequest, fault: str | None, status: int | None, remaining_s: float
    ) -> None:
        state = self._state
        if self._transport is None:
            state.abandoned += 1  # the client left during the latency
            return
        if fault is not None:
            state.faults[fault] += 1
            if self._inject_fault(fault, status):
                return
        try:
            fields = decode_request(request.body)
            reply = render_reply(request.path, fields, request.digest, state.options.answer_tokens)
        except (ValueError, RecursionError) as error:
            self._count_and_reply(400, error_body(f"bad body: {error}", "invalid_request_error"))
            return
        if reply is None or (state.options.models and fields.model not in state.options.models):
            message = f"{request.path} {fields.model} is not served"
            self._count_and_reply(404, error_body(message, "invalid_request_error"))
            return
        state.models[fields.model] += 1
        wait_s = state.token_limit.acquire(reply.prompt_tokens + reply.completion_tokens)
        if wait_s is not None:
            self._count_and_reply(429, error_body("Rate limit reached: tokens", "tokens"), wait_s)
        else:
            self._send_completion(reply, request, fault, remaining_s)

    def _inject_fault(self, fault: str, status: int | None) -> bool:
        """Inject the fault; returns False if it only modifies a good answer."""
        kind = FAULT_KINDS.get(fault)
        if kind is not None and kind.refuse is not None:
            reply = kind.refuse(self._state.options.retry_after_s)
            if fault == "rate_limited":  # the one kind whose header an option sets
                reply = reply._replace(headers=self._retry_after_header(self._state.options.retry_after_s))
            self._state.statuses[reply.status] += 1
            self._send_wire_reply(reply)
        elif fault == "status" and status:
            self._count_and_reply(status, error_body(f"status {status} as ordered", "invalid_request_error"))
        elif fault == "dropped":
            self._abort()
        else:
            return fault == "hanging"
        return True

    def _send_completion(
        self, reply: SimulatedReply, request: HttpRequest, fault: str | None, remaining_s: float
    ) -> None:
        kind = FAULT_KINDS.get(fault) if fault is not None else None
        if kind is not None and kind.alter is not None:
            if kind.outcome == FaultOutcome():  # a good answer all the same
                self._state.count_answered(request, reply)
            else:
                self._state.statuses[200] += 1
            self._send_wire_reply(kind.alter(reply))
            return
        if fault == "cut_off":
            self._write_response(200, reply.body, body_length=len(reply.body) // 2)
            self._close_transport()
            return
        self._state.count_answered(request, reply)
        if remaining_s:
            # Head first: clients measure the time to first byte and to the end separately.
            self._write_response(200, reply.body, body_length=0)
            asyncio.get_running_loop().call_later(remaining_s, self._write_rest, reply.body)
        else:
            self._send_reply(200, reply.body)

    def _count_and_reply(self, status: int, body: bytes, retry_after_s: float | None = None) -> None:
        self._state.statuses[status] += 1
        self._send_reply(status, body, retry_after_s)

    def _send_reply(self, status: int, body: bytes, retry_after_s: float | None = None) -> None:
        self._write_response(status, body, retry_after_s)
        self._end_request()

    def _send_wire_reply(self, reply: WireReply) -> None:
        self._write_wire_reply(reply)
        self._end_request()

    def _write_response(
        self, status: int, body: bytes, retry_after_s: float | None = None, body_length: int | None = None
    ) -> None:
        headers = b"" if retry_after_s is None else self._retry_after_header(retry_after_s)
        self._write_wire_reply(WireReply(status, body, headers), body_length)

    def _write_wire_reply(self, reply: WireReply, body_length: int | None = None) -> None:
        if self._transport is None:
            return
        self._state.replies += 1
        if body_length is not None:
            framing = b"content-length: %d\r\n" % len(reply.body)
            reply = reply._replace(framing=framing, body=reply.body[:body_length])
        self._transport.write(reply.to_bytes(self._state.replies))

    def _retry_after_header(self, wait_s: float) -> bytes:
        return RETRY_AFTER_FORMS[self._state.options.retry_after](wait_s)

    def _write_rest(self, rest: bytes) -> None:
        if self._transport is not None:
            self._transport.write(rest)
        self._end_request()
        self._handle_pending()

    def _end_request(self) -> None:
        self._count_closed()
        self._is_busy = False
        if not self._keep_alive:
            self._close_transport()

    def _count_closed(self) -> None:
        """Count the connection's request as no longer open."""
        if self._is_counted:
            self._is_counted = False
            self._state.open_requests -= 1

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()

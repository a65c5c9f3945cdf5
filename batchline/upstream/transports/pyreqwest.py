"""The transport for TLS and proxies: pyreqwest, a Rust client."""

import sys
from datetime import timedelta
from math import inf
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    ConnectError,
    ConnectTimeoutError,
    PyreqwestError,
    RequestError,
    RequestTimeoutError,
)
from pyreqwest.request import RequestBody, StreamRequest
from pyreqwest.response import Response

from batchline.models.error_codes import ErrorCode
from batchline.models.errors import InvalidInput
from batchline.models.upstreams import Upstream
from batchline.upstream.transports.base import (
    HttpReply,
    TransportFailure,
    broken_rule,
    build_headers,
    keep_headers,
    response_too_long,
)
from batchline.upstream.transports.content_encoding import SUPPORTED_ENCODINGS, decode_body
from batchline.upstream.transports.keepalive import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    TCP_USER_TIMEOUT_S,
)

ACCEPT_ENCODING: Final = ", ".join((*SUPPORTED_ENCODINGS, "br", "zstd"))
"""The last two are decoded by pyreqwest, the others by us."""

BROKEN_RULES: Final = ("parsed", "Invalid chunk", "message head is too large")
"""Parts of pyreqwest's messages about replies that break rules of HTTP."""


class PyreqwestTransport:
    """Sends over keep-alive HTTP/1.1 connections, one per request in flight; follows no redirects."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._client = _build_client(upstream)
        self._templates: dict[str, StreamRequest] = {}
        # The client does not tell if a connection was used before, so count those that can be idle at most.
        self._idle_connections = 0

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST the JSON body, with the upstream's timeouts.

        `valid_until` is checked only before the request is sent again: the client connects and sends in one step.
        """
        is_reused = self._idle_connections > 0
        self._idle_connections -= is_reused
        try:
            reply = await self._exchange(path, body)
        except TransportFailure as failure:
            # A server may close an idle connection just as the next request is sent on it.
            if not (is_reused and failure.sent and failure.closed_before_reply and monotonic() <= valid_until):
                raise
            reply = await self._send_again(path, body)
        self._idle_connections = min(self._idle_connections + 1, self._upstream.max_in_flight)
        return reply

    async def _send_again(self, path: str, body: bytes) -> HttpReply:
        try:
            return await self._exchange(path, body)
        except TransportFailure as failure:
            failure.sent = True
            raise

    async def _exchange(self, path: str, body: bytes) -> HttpReply:
        template = self._templates.get(path)
        if template is None:
            # With a buffer of one byte the response is returned when its body begins: most replies are then
            # complete, with one wake-up of the loop's thread instead of two.
            request_headers = {"accept-encoding": ACCEPT_ENCODING, **build_headers(self._upstream, path)}
            builder = self._client.post(self._upstream.url_for(path)).headers(request_headers)
            template = self._templates[path] = builder.streamed_read_buffer_limit(1).build_streamed()
        # A copy with another body is cheaper: each step of the builder releases and retakes the GIL.
        request = StreamRequest.from_request_and_body(template, RequestBody.from_bytes(body))
        start, response_started = perf_counter(), False
        try:
            async with request as response:
                ttfb_s, response_started = perf_counter() - start, True
                status_code = response.status
                content = await self._read_body(response)
        except RequestError as error:
            failure = _to_transport_failure(error)
            failure.response_started |= response_started
            raise failure from error
        if encodings := _all_values(response, "content-encoding"):
            content = decode_body(content, ",".join(encodings), status_code, self._upstream)
        headers = () if 200 <= status_code < 300 else _kept_headers(response)
        return HttpReply(status_code, content, ttfb_s, _header(response, "x-request-id"), headers)

    async def _read_body(self, response: Response) -> bytes:
        """Return the body; raises `TransportFailure` if it is longer than `max_response_bytes`.

        Of an error that is too long it returns the beginning or nothing: its status says what to do.
        """
        max_bytes = self._upstream.max_response_bytes
        content_length = _header(response, "content-length") or ""
        # Content-Length does not count if the body is chunked (RFC 9112, 6.3).
        is_chunked = "chunked" in (_header(response, "transfer-encoding") or "").lower()
        blocks: list[bytes] = []
        size = 0
        if content_length.isdigit() and not is_chunked:
            size = int(content_length)
            if size <= max_bytes:
                return bytes(await response.body_reader.read(size) or b"")
        while size <= max_bytes:
            block = await response.body_reader.read_chunk()
            if block is None:
                return b"".join(blocks)
            size += len(block)
            blocks.append(bytes(block))
        if response.status < 300:
            raise response_too_long(self._upstream)
        return b"".join(blocks)[:max_bytes]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def _build_client(upstream: Upstream) -> Client:
    """Return a client with the upstream's timeouts and TLS settings; raises `InvalidInput` if they are invalid."""
    builder = (
        ClientBuilder()
        .follow_redirects(False)
        .referer(False)
        .gzip(False)
        .deflate(False)
        .http1_allow_obsolete_multiline_headers_in_responses(True)
        .http1_allow_spaces_after_header_name_in_responses(True)
        .http1_ignore_invalid_headers_in_responses(True)
        .max_connections(None)
        .pool_max_idle_per_host(upstream.max_in_flight)
        .connect_timeout(timedelta(seconds=upstream.connect_timeout_s))
        .read_timeout(timedelta(seconds=upstream.idle_timeout_s))
        .timeout(timedelta(seconds=upstream.total_timeout_s))
        .tcp_keepalive(timedelta(seconds=KEEPALIVE_IDLE_S))
        .tcp_keepalive_interval(timedelta(seconds=KEEPALIVE_INTERVAL_S))
        .tcp_keepalive_retries(KEEPALIVE_PROBES)
    )
    if sys.platform == "linux":
        builder = builder.tcp_user_timeout(timedelta(seconds=TCP_USER_TIMEOUT_S))
    if not upstream.verify_tls:
        builder = builder.danger_accept_invalid_certs(True)
    try:
        if upstream.ca_file is not None:
            builder = builder.add_root_certificate_pem(Path(upstream.ca_file).read_bytes())
        return builder.build()
    except OSError as error:
        raise InvalidInput(f"ca_file of upstream {upstream.name} cannot be read: {error.strerror}") from error
    except (BuilderError, PyreqwestError) as error:
        raise InvalidInput(f"upstream {upstream.name} cannot be called: {_innermost_cause(error)}") from error


def _to_transport_failure(error: RequestError) -> TransportFailure:
    """Return the failure for a pyreqwest error."""
    # Classified by its causes, since the class can be wrong for failures to connect.
    causes = [str(cause.get("message", "")) for cause in error.details.get("causes") or ()]
    is_connect_error = any("client error (Connect)" in cause for cause in causes)
    if is_connect_error:
        is_timeout = isinstance(error, ConnectTimeoutError) or "timed out" in _innermost_cause(error)
        code = ErrorCode.TIMEOUT if is_timeout else ErrorCode.CONNECTION_ERROR
        return TransportFailure(code, f"no connection: {_innermost_cause(error)}", sent=False)
    if isinstance(error, RequestTimeoutError):
        return TransportFailure(ErrorCode.TIMEOUT, "no answer in time", sent=True)
    if isinstance(error, ConnectError) and not causes:
        return TransportFailure(ErrorCode.CONNECTION_ERROR, f"no connection: {error}", sent=False)
    reason = _innermost_cause(error)
    is_broken_rule = any(part in reason for part in BROKEN_RULES)
    message = broken_rule(reason) if is_broken_rule else f"the connection broke: {reason}"
    response_started = is_broken_rule or not any("client error (SendRequest)" in cause for cause in causes)
    return TransportFailure(ErrorCode.CONNECTION_ERROR, message, sent=True, response_started=response_started)


def _header(response: Response, name: str) -> str | None:
    try:
        return response.get_header(name)
    except ValueError:  # it is not ASCII
        return None


def _kept_headers(response: Response) -> tuple[tuple[str, str], ...]:
    names = keep_headers((name, "") for name in set(response.headers.keys()))
    return tuple((name, value) for name, _ in names for value in _all_values(response, name))


def _all_values(response: Response, name: str) -> list[str]:
    try:
        return response.get_header_all(name)
    except ValueError:  # one is not ASCII
        return []


def _innermost_cause(error: BaseException) -> str:
    """Return the message of the innermost cause, which contains neither headers nor bodies."""
    details = getattr(error, "details", None) or {}
    causes = [str(cause.get("message", "")) for cause in details.get("causes") or ()]
    return (causes[-1] if causes else str(error.args[0] if error.args else type(error).__name__))[:200]

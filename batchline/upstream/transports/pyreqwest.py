"""The transport for TLS and proxies: pyreqwest, a Rust client."""

import sys
from datetime import timedelta
from math import inf
from pathlib import Path
from time import perf_counter

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
    build_headers,
    keep_headers,
    response_too_long,
)
from batchline.upstream.transports.keepalive import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
    TCP_USER_TIMEOUT_S,
)


class PyreqwestTransport:
    """Sends over keep-alive HTTP/1.1 connections, one per request in flight; follows no redirects."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._client = _build_client(upstream)
        self._templates: dict[str, StreamRequest] = {}

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST the JSON body, with the upstream's timeouts."""
        del valid_until  # the client connects and sends in one step, so there is no moment to check it again
        template = self._templates.get(path)
        if template is None:
            # With a buffer of one byte the response is returned when its body begins: most replies are then
            # complete, with one wake-up of the loop's thread instead of two.
            request_headers = build_headers(self._upstream, path)
            builder = self._client.post(self._upstream.url_for(path)).headers(request_headers)
            template = self._templates[path] = builder.streamed_read_buffer_limit(1).build_streamed()
        # A copy with another body is cheaper: each step of the builder releases and retakes the GIL.
        request = StreamRequest.from_request_and_body(template, RequestBody.from_bytes(body))
        start, response_started = perf_counter(), False
        try:
            async with request as response:
                ttfb_s, response_started = perf_counter() - start, True
                status_code, get_header = response.status, response.get_header
                content = await self._read_body(response, get_header("content-length"))
        except RequestError as error:
            failure = _to_transport_failure(error)
            failure.response_started = response_started
            raise failure from error
        headers = () if 200 <= status_code < 300 else keep_headers(response.headers.items())
        return HttpReply(status_code, content, ttfb_s, get_header("x-request-id"), headers)

    async def _read_body(self, response: Response, content_length: str | None) -> bytes:
        """Return the body; raises `TransportFailure` if it is longer than `max_response_bytes`."""
        max_bytes = self._upstream.max_response_bytes
        if content_length is not None and content_length.isdigit():
            size = int(content_length)
            if size > max_bytes:
                raise response_too_long(self._upstream)
            return bytes(await response.body_reader.read(size) or b"")
        blocks: list[bytes] = []
        size = 0
        while (block := await response.body_reader.read_chunk()) is not None:
            size += len(block)
            if size > max_bytes:
                raise response_too_long(self._upstream)
            blocks.append(bytes(block))
        return b"".join(blocks)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def _build_client(upstream: Upstream) -> Client:
    """Return a client with the upstream's timeouts and TLS settings; raises `InvalidInput` if they are invalid."""
    builder = (
        ClientBuilder()
        .follow_redirects(False)
        .referer(False)
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
    return TransportFailure(
        ErrorCode.CONNECTION_ERROR, f"the connection broke: {_innermost_cause(error)}", sent=True
    )


def _innermost_cause(error: BaseException) -> str:
    """Return the message of the innermost cause, which contains neither headers nor bodies."""
    details = getattr(error, "details", None) or {}
    causes = [str(cause.get("message", "")) for cause in details.get("causes") or ()]
    return (causes[-1] if causes else str(error.args[0] if error.args else type(error).__name__))[:200]

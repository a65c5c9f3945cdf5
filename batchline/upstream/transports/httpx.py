"""A transport through any `httpx.AsyncClient`, with its own auth, event hooks, proxies or mocks.

It is slow: httpx's client and pool cost many times as much as the others, and more with each connection. It takes
unsolicited data on a connection for the reply to the next request, so use it for trusted servers only.
"""

import asyncio
import time
from collections.abc import Callable
from math import inf

import httpx

from batchline.models.error_codes import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream.transports.base import (
    HttpReply,
    Transport,
    TransportFailure,
    broken_rule,
    build_headers,
    find_proxy,
    keep_headers,
    response_too_long,
)
from batchline.upstream.transports.content_encoding import SUPPORTED_ENCODINGS, decode_body
from batchline.upstream.transports.keepalive import KEEPALIVE_OPTIONS

_NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HttpxTransport:
    """Sends through a client, which it closes at the end; never follows redirects."""

    def __init__(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        self._upstream = upstream
        self._client = client
        # httpx also offers br and zstd if it finds their libraries.
        offered = [name.strip() for name in client.headers.get("accept-encoding", "").split(",")]
        self._accept_encoding = ", ".join(name for name in offered if name in SUPPORTED_ENCODINGS) or "identity"

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST the JSON body, with the upstream's timeouts.

        `valid_until` is checked only before the request is sent again: the client connects and sends in one step.
        """
        upstream, trace = self._upstream, _Trace()
        try:
            # httpx has no timeout for the whole exchange: its read timeout starts again with each block.
            async with asyncio.timeout(upstream.total_timeout_s):
                try:
                    return await self._exchange(path, body, trace)
                except TransportFailure as failure:
                    # A server may close an idle connection just as the next request is sent on it.
                    if not (trace.is_reused and failure.closed_before_reply and time.monotonic() <= valid_until):
                        raise
                return await self._send_again(path, body)
        except TimeoutError as error:
            raise TransportFailure(
                ErrorCode.TIMEOUT, "no answer in time", sent=True, response_started=trace.has_response
            ) from error

    async def _send_again(self, path: str, body: bytes) -> HttpReply:
        try:
            return await self._exchange(path, body, _Trace())
        except TransportFailure as failure:
            failure.sent = True
            raise

    async def _exchange(self, path: str, body: bytes, trace: "_Trace") -> HttpReply:
        upstream = self._upstream
        request = self._client.build_request(
            "POST",
            upstream.url_for(path),
            content=bytes(body),
            headers={"accept-encoding": self._accept_encoding, **build_headers(upstream, path)},
            timeout=httpx.Timeout(
                upstream.idle_timeout_s, connect=upstream.connect_timeout_s, pool=upstream.total_timeout_s
            ),
            extensions={"trace": trace},
        )
        start = time.perf_counter()
        try:
            response = await self._client.send(request, stream=True, follow_redirects=False)
            trace.has_response = True
            return await self._read_reply(response, start)
        except httpx.HTTPError as error:
            raise _to_transport_failure(error, response_started=trace.has_response) from error

    async def _read_reply(self, response: httpx.Response, start: float) -> HttpReply:
        max_bytes = self._upstream.max_response_bytes
        # An event hook of the client may have read the response; its content is then decoded.
        is_raw = not response.is_stream_consumed
        try:
            blocks, size, ttfb_s = [], 0, 0.0
            async for block in response.aiter_raw() if is_raw else response.aiter_bytes():
                ttfb_s = ttfb_s or time.perf_counter() - start
                size += len(block)
                # Checked while reading: a reply without an end must not fill the memory.
                if size > max_bytes:
                    if response.status_code >= 300:  # its status says what to do
                        break
                    raise response_too_long(self._upstream)
                blocks.append(block)
        finally:
            await response.aclose()
        body = b"".join(blocks)
        encodings = response.headers.get("content-encoding")
        if is_raw and encodings is not None:
            body = decode_body(body, encodings, response.status_code, self._upstream)
        return HttpReply(
            response.status_code,
            body,
            ttfb_s or time.perf_counter() - start,
            response.headers.get("x-request-id"),
            () if response.is_success else keep_headers(response.headers.multi_items()),
        )

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()


class _Trace:
    """Notes the course of an exchange from the events of httpcore; with other transports none come."""

    def __init__(self) -> None:
        self.has_response = False
        self._has_connected = self._has_sent = False

    async def __call__(self, event: str, _info: object) -> None:
        if event.startswith("connection.connect_"):
            self._has_connected = True
        elif event == "http11.send_request_headers.started":
            self._has_sent = True

    @property
    def is_reused(self) -> bool:
        """Return True if the request was sent on a connection that was open before."""
        return self._has_sent and not self._has_connected


def through_httpx(
    make_client: Callable[[Upstream], httpx.AsyncClient] | None = None,
) -> Callable[[Upstream], Transport]:
    """Return a transport factory for `Services` and `Dispatcher`; by default with plain httpx clients."""
    return lambda upstream: HttpxTransport(upstream, (make_client or _build_client)(upstream))


def _build_client(upstream: Upstream) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=upstream.max_in_flight)
    verify = (upstream.ca_file or True) if upstream.verify_tls else False
    # AsyncClient takes no socket options, and ignores its proxy option if it is given a transport.
    transport = httpx.AsyncHTTPTransport(
        verify=verify, limits=limits, proxy=find_proxy(upstream), socket_options=KEEPALIVE_OPTIONS
    )
    return httpx.AsyncClient(transport=transport)


def _to_transport_failure(error: httpx.HTTPError, *, response_started: bool) -> TransportFailure:
    """Return the failure for an httpx error, without the request's headers and body."""
    sent = not isinstance(error, _NOT_SENT_ERRORS)
    # h11 appends what it has received, which may be a secret that the server echoes.
    reason = str(error).partition(": bytearray")[0][:200] or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return TransportFailure(ErrorCode.TIMEOUT, "no connection: timed out", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return TransportFailure(
            ErrorCode.TIMEOUT, "no answer in time", sent=sent, response_started=response_started
        )
    if isinstance(error, httpx.DecodingError):
        return TransportFailure(
            ErrorCode.INVALID_RESPONSE, "the answer has an invalid content encoding", sent=True
        )
    if isinstance(error, httpx.RemoteProtocolError) and not reason.startswith(("Server disconnected", "peer ")):
        return TransportFailure(ErrorCode.CONNECTION_ERROR, broken_rule(reason), sent=True, response_started=True)
    return TransportFailure(
        ErrorCode.CONNECTION_ERROR,
        f"the connection broke: {reason}" if sent else f"no connection: {reason}",
        sent=sent,
        response_started=response_started,
    )

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
    build_headers,
    find_proxy,
    keep_headers,
    response_too_long,
)
from batchline.upstream.transports.keepalive import KEEPALIVE_OPTIONS

_NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HttpxTransport:
    """Sends through a client, which it closes at the end; never follows redirects."""

    def __init__(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        self._upstream = upstream
        self._client = client

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST the JSON body, with the upstream's timeouts."""
        del valid_until  # the client connects and sends in one step, so there is no moment to check it again
        upstream = self._upstream
        request = self._client.build_request(
            "POST",
            upstream.url_for(path),
            content=bytes(body),
            headers=build_headers(upstream, path),
            timeout=httpx.Timeout(
                upstream.idle_timeout_s, connect=upstream.connect_timeout_s, pool=upstream.total_timeout_s
            ),
        )
        start = time.perf_counter()
        try:
            # httpx has no timeout for the whole exchange: its read timeout starts again with each block.
            async with asyncio.timeout(upstream.total_timeout_s):
                return await self._exchange(request, start)
        except TimeoutError as error:
            raise TransportFailure(ErrorCode.TIMEOUT, "no answer in time", sent=True) from error
        except httpx.HTTPError as error:
            raise _to_transport_failure(error) from error

    async def _exchange(self, request: httpx.Request, start: float) -> HttpReply:
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            blocks, size, ttfb_s = [], 0, 0.0
            async for block in response.aiter_bytes():
                ttfb_s = ttfb_s or time.perf_counter() - start
                blocks.append(block)
                size += len(block)
                # Checked while reading: a reply without an end must not fill the memory.
                if size > self._upstream.max_response_bytes:
                    raise response_too_long(self._upstream)
        finally:
            await response.aclose()
        return HttpReply(
            response.status_code,
            b"".join(blocks),
            ttfb_s or time.perf_counter() - start,
            response.headers.get("x-request-id"),
            () if response.is_success else keep_headers(response.headers.multi_items()),
        )

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()


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


def _to_transport_failure(error: httpx.HTTPError) -> TransportFailure:
    """Return the failure for an httpx error, without the request's headers and body."""
    sent = not isinstance(error, _NOT_SENT_ERRORS)
    reason = str(error)[:200] or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return TransportFailure(ErrorCode.TIMEOUT, "no connection: timed out", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return TransportFailure(ErrorCode.TIMEOUT, "no answer in time", sent=sent)
    if isinstance(error, httpx.DecodingError):
        return TransportFailure(
            ErrorCode.INVALID_RESPONSE, "the answer has an invalid content encoding", sent=True
        )
    return TransportFailure(
        ErrorCode.CONNECTION_ERROR,
        f"the connection broke: {reason}" if sent else f"no connection: {reason}",
        sent=sent,
    )

"""Selects the transport for an upstream."""

from batchline.models.upstreams import Upstream
from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport
from batchline.upstream.transports.base import Transport, find_proxy
from batchline.upstream.transports.pyreqwest import PyreqwestTransport


def open_transport(upstream: Upstream) -> Transport:
    """Return the asyncio transport for plain HTTP, or pyreqwest's for TLS or if a proxy is configured."""
    if upstream.base_url.startswith("http://") and find_proxy(upstream) is None:
        return AsyncioHttpTransport(upstream)
    return PyreqwestTransport(upstream)

"""Which transport an upstream is called by."""

from batchline.models.upstreams import Upstream
from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport
from batchline.upstream.transports.base import Transport, find_proxy
from batchline.upstream.transports.pyreqwest import PyreqwestTransport


def open_transport(upstream: Upstream) -> Transport:
    """Our own for plain HTTP; pyreqwest's for TLS, and where the environment names a proxy."""
    if upstream.base_url.startswith("http://") and find_proxy(upstream) is None:
        return AsyncioHttpTransport(upstream)
    return PyreqwestTransport(upstream)

"""Which transport an upstream is called by."""

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from batchline.models.upstreams import Upstream
from batchline.upstream.plain_transport import PlainTransport
from batchline.upstream.pyreqwest_transport import PyreqwestTransport
from batchline.upstream.transport import Transport


def open_transport(upstream: Upstream) -> Transport:
    """Our own for plain HTTP; pyreqwest's for TLS, and where the environment names a proxy."""
    if upstream.base_url.startswith("http://") and not _has_proxy(upstream):
        return PlainTransport(upstream)
    return PyreqwestTransport(upstream)


def _has_proxy(upstream: Upstream) -> bool:
    proxies = getproxies()
    host = urlsplit(upstream.base_url).hostname or ""
    return bool(proxies.get("http") or proxies.get("all")) and not proxy_bypass(host)

"""Which transport an upstream is called by."""

from batchline.models.upstreams import Upstream
from batchline.upstream.plain_transport import PlainTransport
from batchline.upstream.pyreqwest_transport import PyreqwestTransport
from batchline.upstream.transport import Transport, proxy_for


def open_transport(upstream: Upstream) -> Transport:
    """Our own for plain HTTP; pyreqwest's for TLS, and where the environment names a proxy."""
    if upstream.base_url.startswith("http://") and proxy_for(upstream) is None:
        return PlainTransport(upstream)
    return PyreqwestTransport(upstream)

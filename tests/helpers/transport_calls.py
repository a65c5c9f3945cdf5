"""Requests sent directly through a transport, without a dispatcher."""

import asyncio

from batchline.models.upstreams import Upstream
from batchline.upstream.transports.base import HttpReply, TransportFactory, TransportFailure


def send_directly(
    open_transport: TransportFactory, upstream: Upstream, *bodies: bytes
) -> list[HttpReply | TransportFailure]:
    """Send the bodies one after another over the same connections, and return the reply or the failure of each."""

    async def send_all() -> list[HttpReply | TransportFailure]:
        transport = open_transport(upstream)
        outcomes: list[HttpReply | TransportFailure] = []
        for body in bodies:
            try:
                outcomes.append(await transport.send("/v1/chat/completions", body))
            except TransportFailure as failure:
                outcomes.append(failure)
        await transport.aclose()
        return outcomes

    return asyncio.run(send_all())

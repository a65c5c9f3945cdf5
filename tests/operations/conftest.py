"""Clients on stores and databases of their own, with stand-in upstreams that each test chooses."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from batchline import Batchline
from batchline.simulate import Simulator
from batchline.steps.engine import Engine


class World(NamedTuple):
    """A client and the stand-in that its batches are sent to."""

    client: Batchline
    simulator: Simulator


@pytest.fixture
def world(
    simulator: Callable[..., Simulator], engine_for: Callable[..., Engine]
) -> Iterator[Callable[..., World]]:
    """Open clients; `stand_in` are options of the simulator, the others settings."""
    opened: list[Batchline] = []

    def open_world(
        *, stand_in: dict[str, object] | None = None, upstream: dict[str, object] | None = None, **settings: object
    ) -> World:
        server = simulator(**(stand_in or {}))
        client = Batchline(engine=engine_for(server.base_url, upstream=upstream, **settings))
        opened.append(client)
        return World(client, server)

    yield open_world
    for client in opened:
        client.close()

"""Clients on stores and databases of their own, with stand-in upstreams whose manners change between runs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import chat_line

from batchline import Batchline
from batchline.simulate import Simulator
from batchline.steps.engine import Engine


class World(NamedTuple):
    """A client and the stand-in that its batches are sent to."""

    client: Batchline
    simulator: Simulator


@pytest.fixture
def world(simulator: Callable[..., Simulator], engine_for: Callable[..., Engine]) -> Iterator[Callable[..., World]]:
    """Open clients; `stand_in` are options of the simulator, the others settings."""
    opened: list[Batchline] = []

    def open_world(*, stand_in: dict[str, object] | None = None, **settings: object) -> World:
        server = simulator(**(stand_in or {}))
        client = Batchline(engine=engine_for(server.base_url, **settings))
        opened.append(client)
        return World(client, server)

    yield open_world
    for client in opened:
        client.close()


def requests_file(path: Path, count: int, *, blank_every: int = 0, **body: object) -> Path:
    """A file of so many chat requests, with a blank line behind every so many."""
    with path.open("w") as file:
        for number in range(count):
            file.write(chat_line(number, f"Question {number}?", **body) + "\n")
            if blank_every and number % blank_every == 0:
                file.write("\n")
    return path


def lines_of(client: Batchline, file_id: str | None) -> list[dict[str, object]]:
    """The lines of that file; none where there is no file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in b"".join(client.files.content(file_id)).splitlines()]

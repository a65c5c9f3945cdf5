"""Clients on stores and databases of each kind, with simulators that each test chooses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.controlled_upstream import Waiter
from helpers.request_files import requests_file
from helpers.storage_servers import S3Server

from batchline import Batchline
from batchline.engine.services import Services
from batchline.simulate import Simulator

PLACES = [
    pytest.param("sqlite_and_disk", id="sqlite-disk"),
    pytest.param("postgresql_and_s3", id="postgresql-s3", marks=pytest.mark.system),
]


class World(NamedTuple):
    """A client and the simulator that its batches are sent to."""

    client: Batchline
    simulator: Simulator


@pytest.fixture
def sqlite_and_disk() -> dict[str, object]:
    return {}


@pytest.fixture
def postgresql_and_s3(postgres_database: dict[str, object], s3_server: S3Server) -> dict[str, object]:
    place = s3_server.settings()
    return place.model_dump(include=place.model_fields_set) | postgres_database


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of where records and objects are: each kind of place in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def world(
    place: dict[str, object], start_simulator: Callable[..., Simulator], make_services: Callable[..., Services]
) -> Iterator[Callable[..., World]]:
    """Open clients; `simulator` are options of the simulator, the others settings."""
    opened: list[Batchline] = []

    def open_world(
        *,
        simulator: dict[str, object] | None = None,
        upstream: dict[str, object] | None = None,
        **settings: object,
    ) -> World:
        server = start_simulator(**(simulator or {}))
        client = Batchline(services=make_services(server.base_url, upstream=upstream, **{**place, **settings}))
        opened.append(client)
        return World(client, server)

    yield open_world
    for client in opened:
        client.close()


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    """A simulator that answers so many requests and no more; its prompts are `<file> <number>`."""
    made = Waiter()
    yield made
    made.stop()


@pytest.fixture
def waiting_batch(
    world: Callable[..., World], waiter: Waiter, tmp_path: Path
) -> Iterator[Callable[..., tuple[Batchline, str]]]:
    """Run a batch of so many requests that the waiter answers none of yet, and save each answer at once."""

    def begin(count: int, **settings: object) -> tuple[Batchline, str]:
        waiter.answer_only(0)
        slowly = {"base_url": waiter.base_url, "max_in_flight": 4, "max_attempts": 1}
        client = world(upstream=slowly, flush_interval_s=0.05, **settings).client
        path = requests_file(tmp_path / "r.jsonl", count, prompt="Question {}".format)
        file = client.files.create(file=path)
        return client, client.batches.create(input_file_id=file.id).id

    yield begin
    waiter.go_on()

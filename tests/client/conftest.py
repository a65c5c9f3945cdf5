"""Clients on stores and databases of each kind, with simulators that each test chooses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.controlled_upstream import ControlledUpstream
from helpers.request_files import write_requests
from helpers.storage_servers import S3Server

from batchline import Batchline
from batchline.engine.services import Services
from batchline.simulate import Simulator

PLACES = [
    pytest.param("sqlite_and_disk", id="sqlite-disk"),
    pytest.param("postgresql_and_s3", id="postgresql-s3", marks=pytest.mark.system),
]


class ClientSetup(NamedTuple):
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
def make_client(
    place: dict[str, object], start_simulator: Callable[..., Simulator], make_services: Callable[..., Services]
) -> Iterator[Callable[..., ClientSetup]]:
    """Open clients; `simulator` are options of the simulator, the others settings."""
    opened: list[Batchline] = []

    def open_world(
        *,
        simulator: dict[str, object] | None = None,
        upstream: dict[str, object] | None = None,
        **settings: object,
    ) -> ClientSetup:
        server = start_simulator(**(simulator or {}))
        client = Batchline(services=make_services(server.base_url, upstream=upstream, **{**place, **settings}))
        opened.append(client)
        return ClientSetup(client, server)

    yield open_world
    for client in opened:
        client.close()


@pytest.fixture
def controlled() -> Iterator[ControlledUpstream]:
    """A simulator that answers so many requests and no more; its prompts are `<file> <number>`."""
    made = ControlledUpstream()
    yield made
    made.stop()


@pytest.fixture
def start_held_batch(
    make_client: Callable[..., ClientSetup], controlled: ControlledUpstream, tmp_path: Path
) -> Iterator[Callable[..., tuple[Batchline, str]]]:
    """Run a batch of so many requests that the waiter answers none of yet, and save each answer at once."""

    def begin(count: int, **settings: object) -> tuple[Batchline, str]:
        controlled.answer_first(0)
        slowly = {"base_url": controlled.base_url, "max_in_flight": 4, "max_attempts": 1}
        client = make_client(upstream=slowly, flush_interval_s=0.05, **settings).client
        path = write_requests(tmp_path / "r.jsonl", count, prompt="Question {}".format)
        file = client.files.create(file=path)
        return client, client.batches.create(input_file_id=file.id).id

    yield begin
    controlled.answer_all()

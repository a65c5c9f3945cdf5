"""Clients on stores and databases of each kind, with stand-in upstreams that each test chooses."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.register_assert_rewrite("ledger", "lives")
for room in ("storage", "upstream"):  # for their real servers and races, and their scripted server
    sys.path.append(str(Path(__file__).parent.parent / room))

from real_servers import Postgres, S3Server, postgres_server, seaweedfs  # noqa: E402 - now that it can be found

from batchline import Batchline  # noqa: E402
from batchline.models.settings import load_settings  # noqa: E402
from batchline.simulate import Simulator  # noqa: E402
from batchline.steps.engine import Engine  # noqa: E402
from batchline.storage.records import upgrade_database  # noqa: E402

PLACES = [
    pytest.param("sqlite_and_disk", id="sqlite-disk"),
    pytest.param("postgresql_and_disk", id="postgresql-disk", marks=pytest.mark.slow),
    pytest.param("sqlite_and_s3", id="sqlite-s3", marks=pytest.mark.slow),
]


class World(NamedTuple):
    """A client and the stand-in that its batches are sent to."""

    client: Batchline
    simulator: Simulator


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a PostgreSQL database with all tables, to copy."""
    name = postgres.create()
    upgrade_database(load_settings(database_url=postgres.url(name)))
    return name


@pytest.fixture
def sqlite_and_disk() -> dict[str, object]:
    return {}


@pytest.fixture
def postgresql_and_disk(postgres: Postgres, migrated: str) -> Iterator[dict[str, object]]:
    name = postgres.create(template=migrated)
    yield {"database_url": postgres.url(name)}
    postgres.drop(name)


@pytest.fixture
def sqlite_and_s3(s3_server: S3Server) -> dict[str, object]:
    place = s3_server.settings()
    return place.model_dump(include=place.model_fields_set)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of where records and objects are: each kind of place in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def world(
    place: dict[str, object], simulator: Callable[..., Simulator], engine_for: Callable[..., Engine]
) -> Iterator[Callable[..., World]]:
    """Open clients; `stand_in` are options of the simulator, the others settings."""
    opened: list[Batchline] = []

    def open_world(
        *, stand_in: dict[str, object] | None = None, upstream: dict[str, object] | None = None, **settings: object
    ) -> World:
        server = simulator(**(stand_in or {}))
        client = Batchline(engine=engine_for(server.base_url, upstream=upstream, **{**place, **settings}))
        opened.append(client)
        return World(client, server)

    yield open_world
    for client in opened:
        client.close()

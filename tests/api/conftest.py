"""The API on this test's own directory."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for room in ("storage", "operations", "cli"):  # for their real servers, their requests and their typed commands
    sys.path.append(str(Path(__file__).parent.parent / room))

from real_servers import Postgres, postgres_server  # noqa: E402 - now that it can be found
from serving import Served  # noqa: E402

from batchline import Batchline  # noqa: E402
from batchline.models.settings import load_settings  # noqa: E402
from batchline.simulate import Simulator  # noqa: E402
from batchline.steps.engine import Engine  # noqa: E402
from batchline.storage.records import upgrade_database  # noqa: E402


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """Settings of each kind of database in turn."""
    if request.param == "sqlite":
        yield {}
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create()
    upgrade_database(load_settings(database_url=server.url(name)))
    yield {"database_url": server.url(name)}
    server.drop(name)


@pytest.fixture
def serve(
    simulator: Callable[..., Simulator], engine_for: Callable[..., Engine]
) -> Iterator[Callable[..., Served]]:
    """Serve on this test's own directory; `stand_in` are options of the simulator, the others settings."""
    started: list[Served] = []

    def start(
        *, stand_in: dict[str, object] | None = None, upstream: dict[str, object] | None = None, **settings: object
    ) -> Served:
        target = simulator(**(stand_in or {}))
        client = Batchline(engine=engine_for(target.base_url, upstream=upstream, **settings))
        started.append(Served(client, target))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """An API without anything special."""
    return serve()

"""The API on this test's own directory."""

from collections.abc import Callable, Iterator

import pytest
from helpers.api_server import Served
from helpers.storage_servers import DATABASES

from batchline import Batchline
from batchline.engine.services import Services
from batchline.simulate import Simulator


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of each kind of database in turn."""
    return {} if request.param == "sqlite" else request.getfixturevalue("postgres_database")


@pytest.fixture
def serve(
    simulator: Callable[..., Simulator], engine_for: Callable[..., Services]
) -> Iterator[Callable[..., Served]]:
    """Serve on this test's own directory; `stand_in` are options of the simulator, the others settings."""
    started: list[Served] = []

    def start(
        *, stand_in: dict[str, object] | None = None, upstream: dict[str, object] | None = None, **settings: object
    ) -> Served:
        target = simulator(**(stand_in or {}))
        client = Batchline(services=engine_for(target.base_url, upstream=upstream, **settings))
        started.append(Served(client, target))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """An API without anything special."""
    return serve()

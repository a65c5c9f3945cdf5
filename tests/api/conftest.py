"""The API on this test's own directory."""

from collections.abc import Callable, Iterator

import pytest
from helpers.api_server import ApiServer
from helpers.storage_servers import DATABASES

from batchline import Batchline
from batchline.engine.services import Services
from batchline.simulate import Simulator


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of each kind of database in turn."""
    return {} if request.param == "sqlite" else request.getfixturevalue("postgres_database")


@pytest.fixture
def start_api(
    start_simulator: Callable[..., Simulator], make_services: Callable[..., Services]
) -> Iterator[Callable[..., ApiServer]]:
    """Serve on this test's own directory; `simulator` are options of the simulator, the others settings."""
    started: list[ApiServer] = []

    def start(
        *,
        simulator: dict[str, object] | None = None,
        upstream: dict[str, object] | None = None,
        **settings: object,
    ) -> ApiServer:
        target = start_simulator(**(simulator or {}))
        client = Batchline(services=make_services(target.base_url, upstream=upstream, **settings))
        started.append(ApiServer(client, target))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def served(start_api: Callable[..., ApiServer]) -> ApiServer:
    """An API without anything special."""
    return start_api()

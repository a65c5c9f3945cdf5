"""The pages on this test's own directory, and a browser to look at them with."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from helpers import shared_servers
from helpers.api_server import ApiServer, root_of
from helpers.web_client import WebClient

from batchline import Batchline
from batchline.engine.services import Services
from batchline.models.settings import load_settings
from batchline.models.upstreams import Upstream
from batchline.simulate import Simulator, SimulatorOptions
from batchline.storage.objects.select import open_objects
from batchline.storage.records.store import open_records
from batchline.web import with_pages


def _served(home: Path, simulator: dict[str, object], settings: dict[str, object]) -> Iterator[ApiServer]:
    with ExitStack() as stack:
        target = Simulator(SimulatorOptions.model_validate(simulator))
        target.start()
        stack.callback(target.stop)
        address = settings.pop("base_url", target.base_url)
        upstream = {"base_url": address, "max_attempts": 3, "backoff_base_s": 0.01, "backoff_cap_s": 0.05}
        known = {"home": home, "upstreams": [Upstream.model_validate(upstream)], "flush_interval_s": 0.2}
        chosen = load_settings(**{**known, **settings})
        shared_servers.copy_sqlite(chosen)
        services = Services(settings=chosen, store=open_objects(chosen), records=open_records(chosen))
        stack.callback(services.records.close)
        served = ApiServer(Batchline(services=services), target, with_pages)
        stack.callback(served.close)
        yield served


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[Callable[..., ApiServer]]:
    """Serve API and pages on this test's own directory; `simulator` are options of the simulator."""
    with ExitStack() as stack:

        def start(*, simulator: dict[str, object] | None = None, **settings: object) -> ApiServer:
            return stack.enter_context(contextmanager(_served)(tmp_path / "home", simulator or {}, settings))

        yield start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Pages that a module's tests share, where no key is needed."""
    yield from _served(tmp_path_factory.mktemp("open"), {}, {})


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Pages that a module's tests share, where a key is needed."""
    for found in _served(tmp_path_factory.mktemp("keyed"), {}, {}):
        found.key("first")
        yield found


@pytest.fixture
def web_client(served: ApiServer) -> Iterator[WebClient]:
    """A client of pages that need no key."""
    with WebClient(root_of(served.url)) as found:
        yield found


@pytest.fixture
def guest(keyed: ApiServer) -> Iterator[WebClient]:
    """A client that has not signed in."""
    with WebClient(root_of(keyed.url)) as found:
        yield found

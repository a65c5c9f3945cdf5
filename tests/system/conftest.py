"""A Prefect server with its pages, our deployments and a worker, and a browser to use them with."""

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.chromium import started_chromium
from helpers.prefect_pages import BOTH, PrefectPages
from helpers.prefect_stack import Site, kill, opened_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A Prefect server with its pages and our deployments, without a worker."""
    yield from opened_site(tmp_path_factory.mktemp("site"), pages=True)


@pytest.fixture(scope="module")
def worked_site(site: Site) -> Iterator[Site]:
    """The server with a worker."""
    worker = site.worker()
    yield site
    kill(worker)


# Not for the session: while playwright drives it, other tests could not run event loops of their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    with started_chromium() as browser:
        yield browser


@pytest.fixture(params=BOTH, ids=["v1", "v2"])
def pages(request: pytest.FixtureRequest, chromium: Any, site: Site) -> Iterator[PrefectPages]:
    """A browser window on the server's pages, in each of their two versions."""
    opened = PrefectPages(chromium, site.api, request.param)
    yield opened
    opened.close()

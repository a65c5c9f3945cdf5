"""Flows that run in this process use a real Prefect server."""

from collections.abc import Iterator

import pytest
from prefect_settings import using_prefect
from prefect_site import Site, opened_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from opened_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def prefect_server(prefect_api: str) -> Iterator[None]:
    with using_prefect(prefect_api):
        yield

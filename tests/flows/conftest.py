"""Flows that run in this process use a real Prefect server."""

from collections.abc import Iterator

import pytest
from prefect_settings import using_prefect


@pytest.fixture(scope="session")
def prefect_server(prefect_api: str) -> Iterator[None]:
    with using_prefect(prefect_api):
        yield

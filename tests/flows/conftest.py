"""A real Prefect server on a temporary database, once a session."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness

sys.path.append(str(Path(__file__).parent.parent / "storage"))  # for its real servers


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    with (
        temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield

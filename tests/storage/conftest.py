"""Stores and databases of each kind, new for each test."""

from collections.abc import Iterator

import pytest
from botocore.retries.standard import ExponentialBackoff
from helpers import shared_servers
from helpers.storage_servers import DATABASES, Postgres, S3Server

from batchline.models.settings import Settings, load_settings
from batchline.storage.objects.select import open_objects
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import Records, open_records

STORES = ["local", pytest.param("s3", marks=pytest.mark.system)]


@pytest.fixture(scope="session")
def s3_store(s3_server: S3Server) -> ObjectStore:
    """A store on S3, one for all tests as the client takes long to make."""
    return open_objects(s3_server.settings())


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """An empty store of each kind."""
    made = open_objects(load_settings()) if request.param == "local" else request.getfixturevalue("s3_store")
    yield made
    made.delete([info.key for info in made.list_objects("")])


@pytest.fixture
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the S3 client retry as often as usual, but without delay."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)


@pytest.fixture
def empty_postgres(postgres: Postgres) -> Iterator[Settings]:
    """Settings with an empty PostgreSQL database."""
    name = postgres.create()
    yield load_settings(database_url=postgres.url(name))
    postgres.drop(name)


@pytest.fixture
def ready_postgres(postgres_database: dict[str, object]) -> Settings:
    """Settings with a PostgreSQL database that has all tables."""
    return load_settings(**postgres_database)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Settings:
    """Settings with a database of each kind that has all tables and no rows."""
    if request.param != "sqlite":
        return request.getfixturevalue("ready_postgres")
    settings = load_settings()
    shared_servers.copy_sqlite(settings)
    return settings


@pytest.fixture
def records(database: Settings) -> Iterator[Records]:
    opened = open_records(database)
    yield opened
    opened.close()

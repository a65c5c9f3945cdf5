"""Opening the database of records, and bringing its schema up to date."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.settings import Settings
from batchline.storage.schema import HEAD

BUSY_TIMEOUT_S = 30.0
TRIES = 5

_T = TypeVar("_T")
_migrating = threading.Lock()


def open_database(settings: Settings) -> Engine:
    """An engine on the settings' database, its schema current.

    SQLite's file and tables are made where they are missing. Raises `InvalidInput` for a URL that cannot be
    used or another database whose schema is behind, `StorageFault` where the database does not answer.
    """
    engine = _engine(_url(settings))
    with faults():
        current = _revision(engine)
    if current == HEAD:
        return engine
    if engine.dialect.name == "sqlite":
        _migrate(engine)
        return engine
    found = f"is at {current}" if current else "is empty"
    raise InvalidInput(
        f"the database's schema {found}, this version needs {HEAD}: run `batchline db upgrade`",
        param="database_url",
    )


def upgrade_database(settings: Settings) -> None:
    """Bring the schema up to this version; safe to run twice and by several at once."""
    _migrate(_engine(_url(settings)))


def _url(settings: Settings) -> URL:
    try:
        url = make_url(settings.database)
    except ArgumentError:
        raise InvalidInput(
            "database_url cannot be read; write sqlite:///path or postgresql://user@host/name",
            param="database_url",
        ) from None
    return url.set(drivername="postgresql+psycopg") if url.drivername in {"postgresql", "postgres"} else url


def _engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite and url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFault(f"{Path(url.database).parent} cannot be made: {error.strerror}") from error
    arguments: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S} if sqlite else {"connect_timeout": 10}
    try:
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=not sqlite)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        raise InvalidInput(
            f"database_url is of kind {url.drivername!r}; sqlite and postgresql are supported",
            param="database_url",
        ) from None
    if sqlite:
        _tune_sqlite(engine)
    return engine


def _tune_sqlite(engine: Engine) -> None:
    """Write-ahead log, and transactions that ask for the write lock when they begin."""

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        del record
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _revision(engine: Engine) -> str | None:
    with engine.connect().execution_options(reads=True) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def _migrate(engine: Engine) -> None:
    """Run the migrations under a lock that other processes respect: SQLite's own, or an advisory one."""
    from alembic import command  # noqa: PLC0415 - slow to import and needed once a version
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    with _migrating, faults(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7461)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def faults() -> Iterator[None]:
    """Turn the database's errors into `StorageFault`, without statement, parameters or URL."""
    try:
        yield
    except DBAPIError as error:
        first = str(error.orig).partition("\n")[0][:200]
        raise StorageFault(f"the database failed: {type(error.orig).__name__}: {first}") from error
    except SQLAlchemyError as error:
        raise StorageFault(f"the database failed: {type(error).__name__}") from error


def retried(work: Callable[[], _T]) -> _T:
    """The work's result; it is tried again where a server or a lock was away for a moment."""
    for left in range(TRIES - 1, -1, -1):
        try:
            with faults():
                return work()
        except StorageFault as fault:
            if not left or not _passes(fault.__cause__):
                raise
            time.sleep(0.1 * 2 ** (TRIES - left))
    raise AssertionError


def _passes(error: BaseException | None) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or "locked" in str(error.orig) or "closed" in str(error.orig)

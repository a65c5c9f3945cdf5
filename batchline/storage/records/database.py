"""Opens the database of the records and migrates its schema."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.settings import Settings
from batchline.storage.objects.disk import make_private_file
from batchline.storage.records.connection_timeouts import apply_timeouts, connect_arguments
from batchline.storage.records.schema import HEAD

BUSY_TIMEOUT_S = 30.0
MAX_ATTEMPTS = 5
SQLITE_CONNECTIONS = 40
"""Size of the connection pool: one per server thread, because opening one takes longer than most reads."""

TRANSIENT_ERROR_WORDS = ("locked", "closed", "Connection refused", "starting up", "shutting down")
"""Words in the errors of a database that is briefly unavailable."""

DRIVERS = {
    **dict.fromkeys(("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"), "sqlite"),
    **dict.fromkeys(
        ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"),
        "postgresql+psycopg",
    ),
}
"""Driver to use for each driver name in a URL; Prefect's URLs name async drivers."""

ASYNCPG_OPTIONS = ("ssl", "command_timeout", "prepared_statement_cache_size", "prepared_statement_name_func")

_T = TypeVar("_T")
_migration_lock = threading.Lock()


def open_database(settings: Settings) -> Engine:
    """Return an engine for the configured database with a current schema.

    SQLite's file and tables are created or migrated. Raises `InvalidInput` for an unusable URL or if another
    database's schema is not current, and `StorageFault` if the database does not answer.
    """
    engine = _create_engine(_parse_url(settings))
    try:
        _ensure_current_schema(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def upgrade_database(settings: Settings) -> None:
    """Migrate the schema to this version; safe to repeat and to run concurrently."""
    engine = _create_engine(_parse_url(settings), is_bounded=False)
    try:
        with_retries(lambda: _run_migrations(engine))
    finally:
        engine.dispose()


def _parse_url(settings: Settings) -> URL:
    try:
        url = make_url(settings.effective_database_url)
    except (ArgumentError, ValueError):
        # `from None`, because the original error may contain the password.
        raise _invalid_url("cannot be read") from None
    if url.drivername not in DRIVERS:
        raise _invalid_url(f"is of kind {url.drivername!r}")
    if url.drivername.startswith("sqlite") and url.database in {None, "", ":memory:"}:
        raise _invalid_url("names no file, and a database in memory would be lost with its thread")
    driver = DRIVERS[url.drivername]
    if url.drivername == "postgresql+asyncpg":
        ssl = url.query.get("ssl")
        url = url.difference_update_query(ASYNCPG_OPTIONS)
        if ssl:  # psycopg calls it `sslmode`, and has no "true"
            url = url.update_query_dict({"sslmode": "require" if ssl in {"true", "True"} else ssl})
    return url.set(drivername=driver)


def _invalid_url(problem: str) -> InvalidInput:
    return InvalidInput(
        f"database_url {problem}; write sqlite:///path or postgresql://user@host/name", param="database_url"
    )


def _ensure_current_schema(engine: Engine) -> None:
    """Migrate an SQLite database; raise `InvalidInput` for another one that is not current."""
    # A shared database is migrated by a person: processes of the old version may be using it.
    current = with_retries(lambda: _current_revision(engine))
    if current == HEAD:
        return
    if current is not None and current > HEAD:
        raise _schema_too_new(current)
    if engine.dialect.name == "sqlite":
        with_retries(lambda: _run_migrations(engine))
        return
    state = f"is at {current}" if current else "is empty"
    raise InvalidInput(
        f"the database's schema {state}, this version needs {HEAD}: run `batchline db upgrade`",
        param="database_url",
    )


def _schema_too_new(current: str) -> InvalidInput:
    return InvalidInput(
        f"the database's schema is at {current}, and this version knows only {HEAD}: use a newer "
        "batchline, or another database",
        param="database_url",
    )


def _create_engine(url: URL, *, is_bounded: bool = True) -> Engine:
    """Return an engine; if `is_bounded`, with timeouts, which are too short for migrations."""
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database:
        try:
            make_private_file(Path(url.database))
        except OSError as error:
            raise StorageFault(f"{Path(url.database).parent} cannot be created: {error.strerror}") from error
    connect_args: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S} if is_sqlite else connect_arguments(url)
    try:
        engine = create_engine(url, connect_args=connect_args, pool_size=SQLITE_CONNECTIONS if is_sqlite else 5)
    except (ArgumentError, TypeError, ValueError):
        raise _invalid_url("has an unknown or invalid option after its `?`") from None
    if is_sqlite:
        _configure_sqlite(engine)
    elif is_bounded:
        apply_timeouts(engine)
    return engine


def _configure_sqlite(engine: Engine) -> None:
    """Set write-ahead logging, full durability, explicit transactions, and `lower` for all letters."""

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: object) -> None:
        del record
        connection.isolation_level = None  # else the driver would begin transactions itself
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        # SQLite's own `lower` converts ASCII letters only.
        connection.create_function(
            "lower", 1, lambda value: None if value is None else str(value).lower(), deterministic=True
        )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and then writes cannot wait for the write lock, but fails at once.
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _current_revision(engine: Engine) -> str | None:
    with engine.connect().execution_options(reads=True) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])


def _run_migrations(engine: Engine) -> None:
    """Run the migrations under a lock against other processes: SQLite's write lock, or an advisory lock."""
    from alembic import command  # noqa: PLC0415 - slow to import and needed once a version
    from alembic.config import Config  # noqa: PLC0415 - as above
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415 - as above
    from alembic.util import CommandError  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    with _migration_lock, translate_database_errors(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Any number would do, but all versions must use the same one.
            connection.execute(text("SELECT pg_advisory_xact_lock(7461)"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise _schema_too_new(MigrationContext.configure(connection).get_current_revision() or "?") from error


@contextmanager
def translate_database_errors() -> Iterator[None]:
    """Turn the database's errors into `StorageFault`, without statement, parameters or URL."""
    try:
        yield
    except DBAPIError as error:
        first_line = str(error.orig).partition("\n")[0][:200]
        raise StorageFault(f"the database failed: {type(error.orig).__name__}: {first_line}") from error
    except SQLAlchemyError as error:
        raise StorageFault(f"the database failed: {type(error).__name__}") from error


def with_retries(operation: Callable[[], _T]) -> _T:
    """Return the operation's result; retries if the server or a lock is briefly unavailable."""
    for attempts_left in range(MAX_ATTEMPTS - 1, -1, -1):
        try:
            with translate_database_errors():
                return operation()
        except StorageFault as fault:
            # Also the first use of a connection that a restarted server has closed, which drops all pooled ones.
            if not attempts_left or not _is_transient(fault.__cause__):
                raise
            time.sleep(0.1 * 2 ** (MAX_ATTEMPTS - attempts_left))
    raise AssertionError


def _is_transient(error: BaseException | None) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or any(word in str(error.orig) for word in TRANSIENT_ERROR_WORDS)

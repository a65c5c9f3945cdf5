"""Opening the database: URLs, the schema and its migrations, and a server that comes and goes."""

import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from helpers.concurrency import in_processes, in_threads
from helpers.record_edits import change_batch
from helpers.sample_records import NOW, make_batch, make_file
from helpers.storage_servers import SECRET, Postgres, free_ports, start_postgres

import batchline.storage.records.migrations
from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.settings import Settings, load_settings
from batchline.storage.records.database import open_database
from batchline.storage.records.schema import HEAD, metadata
from batchline.storage.records.store import Records, open_records, upgrade_database

SCRIPTS = Path(batchline.storage.records.migrations.__file__).parent


# URLs


UNUSABLE = {
    "no URL": f"{SECRET}",
    "no kind": f"://tests:{SECRET}@localhost/x",
    "a port that is no number": f"postgresql://tests:{SECRET}@localhost:{SECRET}/x",
    "a kind that nobody knows": f"oracular://tests:{SECRET}@localhost/x",
    "a kind that is not supported": f"mysql://tests:{SECRET}@localhost/x",
    "a driver of PostgreSQL that is not there": f"postgresql+pg8000://tests:{SECRET}@localhost/x",
    "SQLite in memory": "sqlite://",
    "SQLite in memory by name": "sqlite:///:memory:",
    "an option of SQLite that is none": "sqlite:///records.db?timeout=soon",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_url_is_rejected_without_showing_it(name: str) -> None:
    with pytest.raises(InvalidInput, match="database_url") as raised:
        open_database(load_settings(database_url=UNUSABLE[name]))

    assert raised.value.param == "database_url"
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.system
@pytest.mark.parametrize(
    "kind", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_postgresql_url_scheme_variants_are_accepted(kind: str, ready_postgres: Settings) -> None:
    url = ready_postgres.effective_database_url.replace("postgresql", kind, 1)
    records = open_records(load_settings(database_url=url))

    assert records.find_batch_of_flow_run("none") is None
    records.close()


def test_unreachable_server_raises_fault_without_password() -> None:
    url = f"postgresql://tests:{SECRET}@127.0.0.1:{free_ports(1)[0]}/x"

    with pytest.raises(StorageFault, match="refused") as raised:
        open_database(load_settings(database_url=url))
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.system
@pytest.mark.parametrize(("database", "password"), [("postgres", f"not-{SECRET}"), ("missing", SECRET)])
def test_rejected_login_raises_fault_without_password(database: str, password: str, postgres: Postgres) -> None:
    with pytest.raises(StorageFault) as raised:
        open_database(load_settings(database_url=postgres.url(database, password=password)))

    assert SECRET not in str(raised.value)


# SQLite


@pytest.fixture
def sqlite() -> Iterator[Records]:
    records = open_records(load_settings())
    yield records
    records.close()


def test_sqlite_file_and_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/records.db"
    records = open_records(load_settings(database_url=f"sqlite:///{path}"))

    assert records.add_batch(make_batch()).total == 0
    assert path.exists()
    records.close()


def test_sqlite_uses_write_ahead_log(tmp_path: Path, sqlite: Records) -> None:
    sqlite.add_file(make_file())

    with sqlite3.connect(tmp_path / "home/batchline.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_sqlite_records_persist_after_reopening(sqlite: Records) -> None:
    batch = sqlite.add_batch(make_batch())
    sqlite.close()
    again = open_records(load_settings())

    assert again.get_batch(batch.id) == batch
    again.close()


def test_sqlite_reader_is_not_blocked_by_a_writer(tmp_path: Path, sqlite: Records) -> None:
    batch = sqlite.add_batch(make_batch())
    writer = sqlite3.connect(tmp_path / "home/batchline.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE batches SET total = 7")

    assert sqlite.get_batch(batch.id).total == 0  # or it would fail after the timeout for locks
    writer.close()


def test_sqlite_writer_waits_for_another_writer(tmp_path: Path, sqlite: Records) -> None:
    batch = sqlite.add_batch(make_batch())
    writer = sqlite3.connect(tmp_path / "home/batchline.db", isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, lambda: writer.execute("COMMIT"))
    release.start()

    assert change_batch(sqlite, batch.id, total=7).total == 7
    release.join()
    writer.close()


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "is no database": lambda path: path.write_bytes(b"no database at all, but long enough" * 100),
    "is a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_file_that_is_not_sqlite_raises_fault(name: str, tmp_path: Path) -> None:
    UNREADABLE[name](tmp_path / "records.db")

    with pytest.raises(StorageFault, match="the database failed"):
        open_records(load_settings(database_url=f"sqlite:///{tmp_path / 'records.db'}"))


def test_sqlite_folder_that_cannot_be_created_raises_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageFault, match="cannot be created"):
        open_records(load_settings(database_url=f"sqlite:///{tmp_path / 'file/below/records.db'}"))


def test_full_disk_raises_fault_until_there_is_space(tmp_path: Path, sqlite: Records) -> None:
    with sqlite3.connect(tmp_path / "home/batchline.db") as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    limited = open_records(load_settings())
    with limited._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageFault, match="full"):
        limited.add_file(make_file(filename="x" * 1_000_000))
    limited.close()

    sqlite.add_file(make_file(filename="x" * 1_000_000))


def open_and_add(number: int, settings: Settings) -> str:
    records = open_records(settings)
    try:
        return records.add_batch(make_batch()).id
    finally:
        records.close()


@pytest.mark.system
def test_processes_opening_new_sqlite_file_at_once_all_get_tables() -> None:
    settings = load_settings()

    ids = in_processes(4, open_and_add, settings)

    records = open_records(settings)
    assert {records.get_batch(each).id for each in ids} == set(ids)
    records.close()


def test_threads_opening_new_sqlite_file_at_once_all_get_tables() -> None:
    settings = load_settings()

    ids = in_threads(8, lambda number: open_and_add(number, settings))

    records = open_records(settings)
    assert {records.get_batch(each).id for each in ids} == set(ids)
    records.close()


# The schema and its migrations


def test_newest_migration_is_the_head_that_the_code_requires() -> None:
    assert ScriptDirectory(str(SCRIPTS)).get_heads() == [HEAD]


def test_migrations_are_numbered_in_order() -> None:
    revisions = [script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()][::-1]

    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]


def test_migrated_tables_match_the_schema(database: Settings) -> None:
    services = open_database(database)
    with services.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    services.dispose()

    assert differences == []


@pytest.mark.system
def test_empty_postgresql_is_rejected_with_upgrade_command(empty_postgres: Settings) -> None:
    with pytest.raises(InvalidInput, match=r"is empty, .* run `batchline db upgrade`") as raised:
        open_records(empty_postgres)
    assert raised.value.param == "database_url"


@pytest.mark.system
def test_upgraded_postgresql_is_usable(empty_postgres: Settings) -> None:
    upgrade_database(empty_postgres)

    assert open_and_add(0, empty_postgres).startswith("batch-")


def test_repeated_upgrade_keeps_records(database: Settings, records: Records) -> None:
    batch = records.add_batch(make_batch())

    upgrade_database(database)
    upgrade_database(database)

    assert records.get_batch(batch.id) == batch


def upgrade_in_process(number: int, settings: Settings) -> str:
    upgrade_database(settings)
    return open_and_add(number, settings)


@pytest.mark.system
def test_processes_upgrading_empty_postgresql_at_once_all_succeed(empty_postgres: Settings) -> None:
    ids = in_processes(3, upgrade_in_process, empty_postgres)

    assert [each.startswith("batch-") for each in ids] == [True] * 3


def stamp(settings: Settings, revision: str) -> None:
    """Set the database's revision."""
    records = open_records(settings)
    with records._engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    records.close()


@pytest.mark.system
def test_outdated_postgresql_is_rejected_with_upgrade_command(ready_postgres: Settings) -> None:
    stamp(ready_postgres, "0000")

    with pytest.raises(InvalidInput, match=f"is at 0000, .* needs {HEAD}: run `batchline db upgrade`"):
        open_records(ready_postgres)


@pytest.mark.parametrize("do", [open_records, upgrade_database])
def test_database_of_newer_version_is_rejected(do: Callable[[Settings], object], database: Settings) -> None:
    stamp(database, "9999")

    with pytest.raises(InvalidInput, match=r"is at 9999, .* use a newer batchline") as raised:
        do(database)
    assert raised.value.param == "database_url"


# A server that comes and goes


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that nobody else uses."""
    with TemporaryDirectory(prefix="batchline-postgres-") as home:
        server = start_postgres(Path(home))
        yield server
        server.stop()


@pytest.fixture
def restartable(own_postgres: Postgres) -> Iterator[Postgres]:
    """A server that a test may leave stopped."""
    yield own_postgres
    own_postgres.restart()


@pytest.fixture
def kept_there(restartable: Postgres) -> Settings:
    """Settings with a database of that server that has all tables."""
    settings = load_settings(database_url=restartable.url(restartable.create()))
    upgrade_database(settings)
    return settings


@pytest.fixture
def records_there(kept_there: Settings) -> Iterator[Records]:
    """Return the database's records."""
    records = open_records(kept_there)
    yield records
    records.close()


@pytest.mark.system
def test_first_call_after_postgresql_restart_succeeds(restartable: Postgres, records_there: Records) -> None:
    records = records_there
    batch = records.add_batch(make_batch())
    in_threads(4, lambda _: records.get_batch(batch.id))  # several connections in the pool

    restartable.restart()

    assert change_batch(records, batch.id, total=7).total == 7
    assert records.get_batch(batch.id).total == 7


@pytest.mark.system
def test_call_during_short_postgresql_restart_waits(restartable: Postgres, kept_there: Settings) -> None:
    records = open_records(kept_there)
    batch = records.add_batch(make_batch())
    restartable.stop()
    coming = threading.Timer(0.4, restartable.start)
    coming.start()

    assert records.claim(batch.id, owner="me", now=NOW, lease_s=60).epoch == 1
    coming.join()
    records.close()


@pytest.mark.system
def test_call_while_postgresql_is_down_raises_fault_in_time(restartable: Postgres, kept_there: Settings) -> None:
    records = open_records(kept_there)
    batch = records.add_batch(make_batch())
    restartable.stop()

    started = time.monotonic()
    with pytest.raises(StorageFault, match="the database failed"):
        records.get_batch(batch.id)
    records.close()
    restartable.start()

    assert time.monotonic() - started < 15
    assert records.get_batch(batch.id) == batch
    records.close()

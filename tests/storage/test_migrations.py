"""Databases of earlier versions, brought up to this one with what is in them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.config import Config
from helpers.record_edits import change_batch
from helpers.sample_records import NOW, list_page, make_batch, make_file, make_full_batch
from helpers.storage_servers import SECRET, Postgres
from sqlalchemy import Connection, Engine, Table, create_engine, insert, inspect, make_url, select, text

import batchline.storage.records.migrations
from batchline.models.batches import ListBatchesQuery
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL_STATUSES, BatchStatus, timestamp_field
from batchline.storage.records.batch_index import index_row
from batchline.storage.records.record_types import to_columns
from batchline.storage.records.schema import HEAD, batch_index, batches, files
from batchline.storage.records.store import BatchRecord, Records, open_records, upgrade_database

SCRIPTS = Path(batchline.storage.records.migrations.__file__).parent


def engine_of(settings: Settings) -> Engine:
    url = make_url(settings.effective_database_url)
    return create_engine(url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url)


def make_tables(settings: Settings, revision: str) -> None:
    """Make the tables as that revision had them."""
    Path(load_settings().home).mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    engine = engine_of(settings)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def database_at(request: pytest.FixtureRequest) -> Callable[[str], Settings]:
    """Make the tables as a revision had them, and return the settings with that database."""
    settings = load_settings() if request.param == "sqlite" else request.getfixturevalue("empty_postgres")

    def make(revision: str) -> Settings:
        make_tables(settings, revision)
        return settings

    return make


@pytest.fixture
def at_0002(database_at: Callable[[str], Settings]) -> Settings:
    """Settings with a database whose tables are those before lists had one of their own."""
    return database_at("0002")


def kinds() -> Iterator[BatchRecord]:
    """Batches in every state, over in time and late, with every kind of text."""
    yield msgspec.structs.replace(make_full_batch(), paused_at=None)  # there were no pauses yet
    for status in BatchStatus:
        ends = timestamp_field(status) if status in TERMINAL_STATUSES else "in_progress_at"
        for late in (-1, 0, 1):
            yield make_batch(
                status=status,
                created_at=NOW + late,
                input_filename="GRÜẞE '\"%.jsonl",
                metadata=None if late else {"İ": "\ufdd0\0", "": "Ärger"},
                **{ends: NOW + 86_400 + late},
            )


def fill(settings: Settings, made: list[BatchRecord]) -> None:
    engine = engine_of(settings)
    with engine.begin() as connection:
        insert_known(connection, batches, [to_columns(msgspec.structs.asdict(batch)) for batch in made])
    engine.dispose()


def insert_known(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert those columns of the rows that the table has at its revision."""
    known = {column["name"] for column in inspect(connection).get_columns(table.name)}
    connection.execute(insert(table), [{name: row[name] for name in row if name in known} for row in rows])


def test_migrated_batches_are_indexed_like_new_ones(at_0002: Settings) -> None:
    made = [*kinds()]
    fill(at_0002, made)

    upgrade_database(at_0002)

    engine = engine_of(at_0002)
    with engine.connect() as connection:
        rows = [{**row} for row in connection.execute(select(batch_index)).mappings()]
    engine.dispose()
    for row in rows:
        del row["number"]
    expected = [index_row(batch) for batch in made]
    assert {row["batch_id"]: row for row in rows} == {row["batch_id"]: row for row in expected}


def test_migrated_batches_are_all_listed(at_0002: Settings) -> None:
    made = [make_batch(id=f"batch-{number:04}", created_at=NOW + number) for number in range(2_345)]
    fill(at_0002, made)

    upgrade_database(at_0002)

    records = open_records(at_0002)
    for number in (0, 999, 1_000, 1_234, 2_344):
        assert found(records, f"batch-{number:04}") == [f"batch-{number:04}"]
    assert sum(records.batch_counts.count_by_status().values()) == len(made)
    records.close()


def test_migrated_finished_batches_count_as_announced(database_at: Callable[[str], Settings]) -> None:
    settings = database_at("0008")
    over, runs = (
        make_batch(status=BatchStatus.COMPLETED, completed_at=NOW),
        make_batch(status=BatchStatus.FINALIZING),
    )
    engine = engine_of(settings)
    with engine.begin() as connection:
        for batch in (over, runs):
            row = to_columns(msgspec.structs.asdict(batch)) | {"last_flow_run_id": "a-run"}
            insert_known(connection, batches, [row])
    engine.dispose()

    upgrade_database(settings)

    records = open_records(settings)
    assert records.list_unannounced(ended_before=NOW) == []
    records.change_status(runs.id, BatchStatus.COMPLETED, now=NOW)
    assert [batch.id for batch in records.list_unannounced(ended_before=NOW)] == [runs.id]
    records.close()


def found(records: Records, search: str) -> list[str]:
    page = list_page(records, ListBatchesQuery(search=search, limit=100), now=NOW)
    return [batch.id for batch in page.data]


def test_migrated_error_files_have_output_purpose(database_at: Callable[[str], Settings]) -> None:
    settings = database_at("0008")
    made = {
        "file-1": ("batch", "files/file-1/content.jsonl"),
        "file-2": ("batch_output", "batches/batch-1/output.jsonl"),
        "file-3": ("batch_error", "batches/batch-1/errors.jsonl"),
    }
    engine = engine_of(settings)
    with engine.begin() as connection:
        for name, (purpose, key) in made.items():
            record = msgspec.structs.asdict(make_file(id=name, key=key))
            connection.execute(insert(files).values(**record | {"purpose": purpose}))
    engine.dispose()

    upgrade_database(settings)

    records = open_records(settings)
    output, errors = (records.get_file(f"file-{number}") for number in (2, 3))
    assert (output.to_object().purpose, output.is_error_file) == ("batch_output", False)
    assert (errors.to_object().purpose, errors.is_error_file) == ("batch_output", True)
    assert not records.get_file("file-1").is_error_file
    assert [each.id for each in records.list_files(purpose="batch")[0]] == ["file-1"]
    records.close()


# The trigram indexes of earlier versions

SQLITE_TRIGRAMS = (
    "CREATE VIRTUAL TABLE listed_batches_trigrams USING fts5(search_text, content='listed_batches', "
    "content_rowid='number', detail=none, columnsize=0, tokenize='trigram case_sensitive 1')",
    "CREATE VIRTUAL TABLE listed_batches_terms USING fts5vocab(listed_batches_trigrams, instance)",
    "INSERT INTO listed_batches_trigrams(listed_batches_trigrams) VALUES ('rebuild')",
    "CREATE TRIGGER listed_batches_inserted AFTER INSERT ON listed_batches BEGIN "
    "INSERT INTO listed_batches_trigrams(rowid, search_text) VALUES (new.number, new.search_text); END",
    "CREATE TRIGGER listed_batches_deleted AFTER DELETE ON listed_batches BEGIN "
    "INSERT INTO listed_batches_trigrams(listed_batches_trigrams, rowid, search_text) "
    "VALUES ('delete', old.number, old.search_text); END",
    "CREATE TRIGGER listed_batches_changed AFTER UPDATE OF search_text ON listed_batches "
    "WHEN old.search_text <> new.search_text BEGIN "
    "INSERT INTO listed_batches_trigrams(listed_batches_trigrams, rowid, search_text) "
    "VALUES ('delete', old.number, old.search_text); "
    "INSERT INTO listed_batches_trigrams(rowid, search_text) VALUES (new.number, new.search_text); END",
)
POSTGRESQL_TRIGRAMS = (
    "CREATE INDEX listed_batches_trigrams ON listed_batches "
    "USING gin (search_text gin_trgm_ops) WITH (fastupdate = off)",
)
EARLIER = [f"{number:04}" for number in range(1, int(HEAD))]


def index_trigrams(connection: Connection) -> None:
    """Make the objects that revision 0003 of earlier versions made; PostgreSQL needs pg_trgm for it."""
    is_sqlite = connection.dialect.name == "sqlite"
    for statement in SQLITE_TRIGRAMS if is_sqlite else POSTGRESQL_TRIGRAMS:
        connection.exec_driver_sql(statement)


NAMES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger' OR name LIKE 'listed_batches_t%'",
    "postgresql": "SELECT relname FROM pg_class WHERE relname LIKE 'listed_batches_t%'",
}


def trigram_objects(settings: Settings) -> list[str]:
    """Return the names of all triggers, and of everything that is named after the trigrams."""
    engine = engine_of(settings)
    with engine.connect() as connection:
        names = connection.execute(text(NAMES[engine.dialect.name])).scalars().all()
    engine.dispose()
    return [*names]


@pytest.mark.parametrize("revision", EARLIER)
def test_database_of_any_earlier_revision_is_searchable_after_upgrade(
    revision: str, database_at: Callable[[str], Settings]
) -> None:
    settings, batch = database_at(revision), make_batch(input_filename="GRÜN.jsonl")
    engine = engine_of(settings)
    with engine.begin() as connection:
        insert_known(connection, batches, [to_columns(msgspec.structs.asdict(batch))])
        if revision >= "0003":
            insert_known(connection, batch_index, [index_row(batch)])
        if "0003" <= revision < "0012":
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("CREATE EXTENSION pg_trgm")
            index_trigrams(connection)
    engine.dispose()

    upgrade_database(settings)

    assert trigram_objects(settings) == []
    records = open_records(settings)
    another = records.add_batch(make_batch(input_filename="grün.jsonl"))
    assert found(records, "Grün") == [another.id, batch.id]
    change_batch(records, batch.id, input_filename="blau.jsonl")
    assert found(records, "Grün") == [another.id]
    records.delete_batch(batch.id, now=NOW, lease_s=60)
    assert found(records, "Blau") == []
    records.close()


@pytest.fixture
def plain_user(postgres: Postgres, empty_postgres: Settings) -> Iterator[Settings]:
    """Settings with the same empty database and a user who may make tables there, and no more."""
    url = make_url(empty_postgres.effective_database_url)
    database = str(url.database)
    postgres.run(f"CREATE ROLE plain LOGIN PASSWORD '{SECRET}'")
    postgres.run("GRANT CREATE, USAGE ON SCHEMA public TO plain", database=database)
    yield load_settings(database_url=url.set(username="plain").render_as_string(hide_password=False))
    postgres.run("DROP OWNED BY plain", database=database)
    postgres.run("DROP ROLE plain")


@pytest.mark.system
def test_role_without_extension_right_can_upgrade(plain_user: Settings) -> None:
    upgrade_database(plain_user)

    records = open_records(plain_user)
    batch = records.add_batch(make_batch(input_filename="needle.jsonl"))
    assert found(records, "NEEDLE") == [batch.id]
    records.close()


@pytest.mark.system
def test_upgrade_keeps_extension_created_by_administrator(plain_user: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE EXTENSION pg_trgm", database=str(make_url(plain_user.effective_database_url).database))
    make_tables(plain_user, "0011")
    engine = engine_of(plain_user)
    with engine.begin() as connection:
        index_trigrams(connection)

    upgrade_database(plain_user)

    assert trigram_objects(plain_user) == []
    with engine.connect() as connection:
        extensions = connection.exec_driver_sql("SELECT extname FROM pg_extension").scalars().all()
    engine.dispose()
    assert "pg_trgm" in extensions

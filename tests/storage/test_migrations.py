"""Databases of earlier versions, brought up to this one with what is in them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from alembic import command
from alembic.config import Config
from changed_records import change_batch
from real_servers import SECRET, Postgres
from some_records import NOW, a_batch, a_file, a_full_batch
from sqlalchemy import Engine, create_engine, insert, make_url, select

import batchline.storage.migrations
from batchline.models.batches import ListBatchesQuery
from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL, BatchStatus, timestamp_field
from batchline.storage.listing import listed_row
from batchline.storage.records import BatchRecord, Records, open_records, upgrade_database
from batchline.storage.rows import columns_of
from batchline.storage.schema import batches, files, listed_batches

SCRIPTS = Path(batchline.storage.migrations.__file__).parent


def engine_of(settings: Settings) -> Engine:
    url = make_url(settings.database)
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
    yield a_full_batch()
    for status in BatchStatus:
        ends = timestamp_field(status) if status in TERMINAL else "in_progress_at"
        for late in (-1, 0, 1):
            yield a_batch(
                status=status,
                created_at=NOW + late,
                input_filename="GRÜẞE '\"%.jsonl",
                metadata=None if late else {"İ": "\ufdd0\0", "": "Ärger"},
                **{ends: NOW + 86_400 + late},
            )


LATER = {"last_flow_run_id", "unanswered", "model", "announced_at"}
"""Columns of batches that came after that revision."""


def fill(settings: Settings, made: list[BatchRecord]) -> None:
    engine = engine_of(settings)
    with engine.begin() as connection:
        rows = [columns_of(msgspec.structs.asdict(batch)) for batch in made]
        connection.execute(
            insert(batches), [{name: row[name] for name in row if name not in LATER} for row in rows]
        )
    engine.dispose()


def test_batches_of_before_are_listed_as_if_they_were_new(at_0002: Settings) -> None:
    made = [*kinds()]
    fill(at_0002, made)

    upgrade_database(at_0002)

    engine = engine_of(at_0002)
    with engine.connect() as connection:
        rows = [{**row} for row in connection.execute(select(listed_batches)).mappings()]
    engine.dispose()
    for row in rows:
        del row["number"]
    expected = [listed_row(batch) for batch in made]
    assert {row["batch_id"]: row for row in rows} == {row["batch_id"]: row for row in expected}


def test_batches_of_before_are_found_changed_and_forgotten(at_0002: Settings) -> None:
    made = [a_batch(id=f"batch-{number:04}", created_at=NOW + number) for number in range(2_345)]
    fill(at_0002, made)

    upgrade_database(at_0002)

    records = open_records(at_0002)
    assert found(records, "batch-1234") == ["batch-1234"]
    change_batch(records, "batch-1234", metadata={"a": "quite new"})
    assert found(records, "QUITE NEW") == ["batch-1234"]
    records.delete_batch("batch-1234", now=NOW, lease_s=60)
    assert found(records, "batch-1234") == found(records, "quite new") == []
    assert len(found(records, "batch-")) == 100
    records.close()


def test_ends_of_before_count_as_announced_in_prefect(database_at: Callable[[str], Settings]) -> None:
    settings = database_at("0008")
    over, runs = a_batch(status=BatchStatus.COMPLETED, completed_at=NOW), a_batch(status=BatchStatus.FINALIZING)
    engine = engine_of(settings)
    with engine.begin() as connection:
        for batch in (over, runs):
            row = columns_of(msgspec.structs.asdict(batch)) | {"last_flow_run_id": "a-run"}
            row = {name: row[name] for name in row if name not in LATER - {"last_flow_run_id"}}
            connection.execute(insert(batches), [row])
    engine.dispose()

    upgrade_database(settings)

    records = open_records(settings)
    assert records.unannounced(ended_before=NOW) == []
    records.move(runs.id, BatchStatus.COMPLETED, now=NOW)
    assert [batch.id for batch in records.unannounced(ended_before=NOW)] == [runs.id]
    records.close()


def found(records: Records, search: str) -> list[str]:
    page = records.list_batches(ListBatchesQuery(search=search, limit=100), now=NOW)
    return [batch.id for batch in page.data]


def test_error_files_of_before_have_the_purpose_of_output_files(database_at: Callable[[str], Settings]) -> None:
    settings = database_at("0008")
    made = {
        "file-1": ("batch", "files/file-1/content.jsonl"),
        "file-2": ("batch_output", "batches/batch-1/output.jsonl"),
        "file-3": ("batch_error", "batches/batch-1/errors.jsonl"),
    }
    engine = engine_of(settings)
    with engine.begin() as connection:
        for name, (purpose, key) in made.items():
            record = msgspec.structs.asdict(a_file(id=name, key=key))
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


# PostgreSQL's extension


@pytest.fixture
def plain_user(postgres: Postgres, empty_postgres: Settings) -> Iterator[Settings]:
    """Settings with the same empty database and a user who may make tables there, and no more."""
    url = make_url(empty_postgres.database)
    database = str(url.database)
    postgres.run(f"CREATE ROLE plain LOGIN PASSWORD '{SECRET}'")
    postgres.run("GRANT CREATE, USAGE ON SCHEMA public TO plain", database=database)
    yield load_settings(database_url=url.set(username="plain").render_as_string(hide_password=False))
    postgres.run("DROP OWNED BY plain", database=database)
    postgres.run("DROP ROLE plain")


@pytest.mark.system
def test_who_may_not_make_the_extension_is_told_what_to_do(plain_user: Settings) -> None:
    with pytest.raises(InvalidInput, match=r"run `CREATE EXTENSION pg_trgm` in this database") as raised:
        upgrade_database(plain_user)

    assert raised.value.param == "database_url"
    assert SECRET not in str(raised.value)


@pytest.mark.system
@pytest.mark.parametrize("schema", ["public", "apart"])
def test_an_extension_that_an_administrator_has_made_is_used(
    schema: str, plain_user: Settings, postgres: Postgres
) -> None:
    database = str(make_url(plain_user.database).database)
    postgres.run(f"CREATE SCHEMA IF NOT EXISTS {schema}", database=database)
    postgres.run(f"GRANT USAGE ON SCHEMA {schema} TO plain", database=database)
    postgres.run(f"CREATE EXTENSION pg_trgm SCHEMA {schema}", database=database)

    upgrade_database(plain_user)

    records = open_records(plain_user)
    batch = records.add_batch(a_batch(input_filename="needle.jsonl"))
    assert found(records, "NEEDLE") == [batch.id]
    records.close()

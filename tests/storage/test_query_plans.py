"""Query plans of lists of many batches: they use the indexes and read no more than a page needs."""

import json
import random
import re
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from helpers.sample_records import NOW, list_page, make_batch, make_file
from helpers.storage_servers import DATABASES
from sqlalchemy import event, insert, text

from batchline.models.batches import ListBatchesQuery
from batchline.models.settings import load_settings
from batchline.models.status import TERMINAL_STATUSES, BatchStatus, timestamp_field
from batchline.storage.records.batch_index import index_row
from batchline.storage.records.record_types import to_columns
from batchline.storage.records.schema import batch_index, batches, files
from batchline.storage.records.store import BatchRecord, Records, open_records

MANY = 20_000
LIMIT = 20
MEMBERS = [str(uuid.UUID(int=number)) for number in (1, 2, 3)]


def in_the_middle_of_life(number: int, chance: random.Random) -> BatchRecord:
    """Make one of many batches: the last hundred are unfinished, half of the old ones belong to a project."""
    active = number >= MANY - 100
    status = chance.choice([*(BatchStatus if active else TERMINAL_STATUSES)])
    if active and status in TERMINAL_STATUSES:
        status = BatchStatus.IN_PROGRESS
    created = NOW - MANY + number
    ends = {timestamp_field(status): created + chance.randrange(90_000)} if status in TERMINAL_STATUSES else {}
    return make_batch(
        status=status,
        created_at=created,
        expires_at=created + 86_400 if chance.random() < 0.9 else NOW - 1,
        input_filename=f"{chance.choice(['amber', 'birch', 'cedar'])}-{number}.jsonl",
        metadata={"project": "migration"} if number < MANY // 2 else None,
        member_id=chance.choice(MEMBERS),
        **ends,
    )


@pytest.fixture(scope="module", params=DATABASES)
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    """Records of many batches and files."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('many')}/records.db"
    else:
        postgres = request.getfixturevalue("postgres")
        url = postgres.url(postgres.create(template=request.getfixturevalue("migrated")))
    records, chance = open_records(load_settings(database_url=url)), random.Random(1)
    made = [in_the_middle_of_life(number, chance) for number in range(MANY)]
    stored = [
        make_file(created_at=NOW - number, purpose=chance.choice(["batch", "batch_output"]))
        for number in range(MANY)
    ]
    with records._engine.begin() as connection:
        connection.execute(insert(batches), [to_columns(msgspec.structs.asdict(batch)) for batch in made])
        connection.execute(insert(batch_index), [index_row(batch) for batch in made])
        connection.execute(insert(files), [msgspec.structs.asdict(file) for file in stored])
        connection.execute(text("ANALYZE" if request.param == "postgresql" else "SELECT 1"))
    yield records
    records.close()


# What the databases say of their plans


class PlannedQuery(NamedTuple):
    """A statement that was run, how the database goes about it, and how many rows it goes through for it."""

    statement: str
    plan: str
    rows: int


def looks(records: Records, **query: object) -> list[PlannedQuery]:
    """Return the statements that are run for a page, except for those that read its batches."""
    run: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        run.append((statement, parameters))

    event.listen(records._engine, "before_cursor_execute", note)
    try:
        list_page(records, ListBatchesQuery.model_validate({"limit": LIMIT, **query}), now=NOW)
    finally:
        event.remove(records._engine, "before_cursor_execute", note)
    return [explained(records, *each) for each in run if "listed_batches" in each[0]]


def explained(records: Records, statement: str, parameters: Any) -> PlannedQuery:
    explain = explained_by_sqlite if records._engine.dialect.name == "sqlite" else explained_by_postgresql
    return explain(records, statement, parameters)


def explained_by_sqlite(records: Records, statement: str, parameters: Any) -> PlannedQuery:
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with records._engine.connect().execution_options(reads=True) as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(step, 10)
        connection.exec_driver_sql(statement, parameters).all()
        driver.set_progress_handler(None, 0)
    # It takes more than ten instructions for a row.
    return PlannedQuery(statement, "\n".join(str(row[-1]) for row in rows), steps)


def explained_by_postgresql(records: Records, statement: str, parameters: Any) -> PlannedQuery:
    with records._engine.connect().execution_options(reads=True) as connection:
        told = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
    plan = told[0]["Plan"]
    return PlannedQuery(statement, json.dumps(plan, indent=1), sum(went_through(node) for node in nodes_of(plan)))


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes_of(below)


def went_through(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"]:
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int(node["Actual Rows"] + removed)


# Filters

FILTERS: dict[str, tuple[str, dict[str, object]]] = {
    "nothing": ("creation", {}),
    "active first": ("end", {"active_first": True}),
    "in progress": ("state", {"status": "in_progress"}),
    "completed": ("state", {"status": "completed"}),
    "failed": ("state", {"status": "failed"}),
    "cancelled": ("state", {"status": "cancelled"}),
    "expired": ("lateness", {"status": "expired"}),
    "paused": ("pause", {"paused": True}),
    "completed, active first": ("state", {"status": "completed", "active_first": True}),
    "cancelled, active first": ("state", {"status": "cancelled", "active_first": True}),
    "a member's": ("member", {"member_id": MEMBERS[0]}),
    "a member's, active first": ("member_and_end", {"member_id": MEMBERS[0], "active_first": True}),
    "a member's that failed": ("member_and_state", {"member_id": MEMBERS[0], "status": "failed"}),
    "a time": ("creation", {"created_after": NOW - 9_000, "created_before": NOW - 8_000}),
    "a time, failed": ("state", {"created_before": NOW - 8_000, "status": "failed"}),
    "a time before all": ("creation", {"created_before": NOW - 10 * MANY}),
}
MOST_ROWS = {"sqlite": 500, "postgresql": 250}
"""Maximum rows that a page of 20 may read: two groups, with all hundred unfinished batches in the worst case."""


@pytest.mark.parametrize("deep", [False, True], ids=["first page", "deep"])
@pytest.mark.parametrize("name", FILTERS)
def test_page_of_batches_uses_index_and_reads_few_rows(name: str, deep: bool, many: Records) -> None:
    index, query = FILTERS[name]
    if deep:
        page = list_page(many, ListBatchesQuery(limit=1, created_before=NOW - MANY + MANY // 4), now=NOW)
        query = {**query, "after": page.last_id}

    found = looks(many, **query)

    for look in found:
        assert "Seq Scan" not in look.plan
        assert re.search(r"SCAN listed_batches(?! USING)", look.plan) is None
        assert look.rows <= MOST_ROWS[many._engine.dialect.name], look.plan
    # PostgreSQL knows how frequent a state is, and walks through all where it is frequent.
    chosen = index if many._engine.dialect.name == "sqlite" else ""
    assert f"listed_batches_by_{chosen}" in found[-1].plan


# Searches


@pytest.mark.parametrize("wanted", ["batch-", "amber", "e", "am"])
def test_search_with_many_matches_stops_when_page_is_full(wanted: str, many: Records) -> None:
    found = looks(many, search=wanted)

    assert "listed_batches_by_creation" in found[-1].plan
    assert found[-1].rows <= 2_000


# Files


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("purpose", [None, "batch_output"])
def test_page_of_files_uses_index(order: str, purpose: str | None, many: Records) -> None:
    run: list[tuple[str, Any]] = []
    last = many.list_files(limit=1, order="asc", purpose=purpose)[0][0]

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        run.append((statement, parameters))

    event.listen(many._engine, "before_cursor_execute", note)
    page, _ = many.list_files(after=last.id, order=order, purpose=purpose)
    event.remove(many._engine, "before_cursor_execute", note)
    explain = explained_by_sqlite if many._engine.dialect.name == "sqlite" else explained_by_postgresql
    look = explain(many, *run[-1])

    assert len(page) == (20 if order == "asc" else 0)
    assert "files_by_" in look.plan
    assert look.rows <= 150

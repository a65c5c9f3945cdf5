"""Batches that an earlier version began are finished: what it saved is taken over and not sent again."""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.batch_assertions import check_results, output_of, received

from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.batches import ListBatchesQuery
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.records.schema import HEAD
from batchline.storage.records.store import BatchRecord

FIXTURES = Path(__file__).parent.parent / "fixtures"
BEGUN = {"begun_at_abf985f": "0008"}
"""Directory of a storage and a database, and the schema that the database had."""

STILL_TO_SEND = {"begun": 18, "retried": 8}
"""Number of unanswered requests of each batch, by the name in its metadata; see the README of its directory."""


@pytest.fixture(params=BEGUN)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of each directory in turn, where the settings expect it."""
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / "home"))


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator()


@pytest.fixture
def services(home: Path, simulator: Simulator, make_services: Callable[..., Services]) -> Services:
    return make_services(simulator.base_url, home=home)


def revision(home: Path) -> str:
    connection = sqlite3.connect(home / "batchline.db")
    try:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    finally:
        connection.close()


def named(services: Services, name: str) -> BatchRecord:
    batches, _ = services.records.list_records(ListBatchesQuery(limit=100), now=0)
    return next(batch for batch in batches if (batch.metadata or {})["name"] == name)


def saved_lines(home: Path, batch: BatchRecord) -> dict[str, dict]:
    """Every result line that is on storage, of parts and segments and of the files before, by the request's id."""
    place = home / "storage" / "batches" / batch.id
    segments = sorted(place.glob(f"g{batch.generation}/segments/*"))
    parts = [path.with_suffix(".output.jsonl") for path in sorted(place.glob("g*/parts/*.parquet"))]
    files = sorted(place.glob("g*/final.*/output.jsonl"))
    lines = [line for path in [*segments, *parts, *files] for line in path.read_text().splitlines()]
    read = [json.loads(line) for line in lines if line.startswith("{")]
    return {line["id"]: line for line in read}


def test_older_database_is_migrated_on_open(home, request):
    assert revision(home) == BEGUN[request.node.callspec.params["home"]]

    request.getfixturevalue("services")

    assert revision(home) == HEAD


@pytest.mark.parametrize(("name", "total"), [("begun", 60), ("retried", 24)])
def test_batch_of_older_version_completes_with_saved_answers(name, total, home, services, simulator):
    batch = named(services, name)
    assert batch.status is BatchStatus.IN_PROGRESS
    saved = saved_lines(home, batch)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, total)
    assert received(simulator) == STILL_TO_SEND[name] == total - len(saved)
    lines = {line["id"]: line for line in output_of(services, ended)}
    assert {key: lines[key] for key in saved} == saved
    assert Counter(line["custom_id"] for line in lines.values()).most_common(1)[0][1] == 1

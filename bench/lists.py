"""Figures of lists: how long a page takes with many batches on record, whatever is asked for."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Engine, insert, text

from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import BatchDwExtResponse, BatchError, ListBatchesQuery
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL_STATUSES
from batchline.models.status import BatchStatus as S
from batchline.storage.records.batch_index import index_row
from batchline.storage.records.database import open_database, upgrade_database
from batchline.storage.records.record_types import to_columns
from batchline.storage.records.schema import batch_index, batches
from batchline.storage.records.store import BatchRecord, FileRecord, Records
from bench.figures import Row
from bench.measuring import WORDS, cpu_of_children_s, parent_of
from bench.servers import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.measuring import World

BATCHES = 100_000
FRESH = 500
"""So many are made one by one, as in life, behind the others."""

ROUNDS = 40
MOST_MS = 100
NOW = 1_764_000_000
DAY_S = 86_400
YEAR_S = 365 * DAY_S
TEAMS = ("search", "growth", "support", "research", "platform", "finance")
MEMBERS = tuple(str(uuid.UUID(int=number)) for number in range(1, 26))


def lists(world: World) -> Iterator[Row]:
    """The 95th percentile and the CPU time of a page of 100 on both databases: the worst and the median query."""
    count = world.count(BATCHES)
    sqlite = load_settings(database_url=f"sqlite:///{world.home / 'lists.db'}")
    yield from _figures(world, "SQLite", sqlite, count)
    with postgres_server() as url:
        settings = load_settings(database_url=url)
        upgrade_database(settings)
        yield from _figures(world, "PostgreSQL", settings, count)


def _figures(world: World, name: str, settings: Settings, count: int) -> Iterator[Row]:
    ids = _fill(settings, count)
    engine = open_database(settings)
    records, server = Records(engine), _postmaster(engine)
    gc.collect()
    gc.freeze()  # as servers do: else each collection goes through all that was ever imported
    try:
        taken = {asked: _taken(records, query, server) for asked, query in queries(ids).items()}
    finally:
        gc.unfreeze()
        records.close()
    kept = world.samples.setdefault(f"lists on {name}", {})
    for asked, sample in taken.items():
        kept[asked] = [sample]
        print(f"    lists on {name}: {asked}: {sample['p95_ms']:.1f} ms", file=sys.stderr)
    label = f"{name}, {count:,} batches"
    worst = max(taken, key=lambda asked: taken[asked]["p95_ms"])
    yield Row(f"{label}: p95 of a page, worst ({worst})", taken[worst]["p95_ms"], most=MOST_MS, unit=" ms")
    for figure, said in {"p95_ms": "p95", "cpu_ms": "CPU"}.items():
        middle = statistics.median(sample[figure] for sample in taken.values())
        yield Row(f"{label}: {said} of a page, the middle of {len(taken)} questions", middle, unit=" ms")
    most_cpu_ms = max(sample["cpu_ms"] for sample in taken.values())
    yield Row(f"{label}: CPU of a page, worst", most_cpu_ms, unit=" ms")


def _taken(records: Records, query: ListBatchesQuery, server: int | None) -> dict[str, float]:
    """Return the wall and CPU time of the page, and the number of batches on it."""
    took_ms = []
    cpu_before_s = _cpu_s(server)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found, _ = records.list_records(query, now=NOW)
        page = [record.to_response(include_analytics=query.includes_analytics) for record in found]
        took_ms.append((time.perf_counter() - began) * 1_000)
    cpu_ms = (_cpu_s(server) - cpu_before_s) * 1_000 / ROUNDS
    p95 = statistics.quantiles(took_ms, n=20)[-1]
    return {
        "p95_ms": p95,
        "median_ms": statistics.median(took_ms),
        "max_ms": max(took_ms),
        "cpu_ms": cpu_ms,
        "shown": len(page),
    }


def _postmaster(engine: Engine) -> int | None:
    """Return the process whose children serve PostgreSQL's connections; None for SQLite."""
    if engine.dialect.name == "sqlite":
        return None
    with engine.connect() as connection:
        return parent_of(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def _cpu_s(server: int | None) -> float:
    """Return the CPU seconds that this process and the database server have taken."""
    return time.process_time() + (0.0 if server is None else cpu_of_children_s(server))


# What is asked


def queries(ids: list[str]) -> dict[str, ListBatchesQuery]:
    """What is asked of batches with those ids, oldest first."""
    half, last = ids[len(ids) // 2], ids[1]
    filters: dict[str, dict[str, Any]] = {
        "everything": {},
        "with analytics": {"include": "analytics"},
        "active first": {"active_first": True},
        "a member's": {"member_id": MEMBERS[0]},
        "a busy member's": {"member_id": MEMBERS[-1]},
        "nobody's": {"member_id": uuid.uuid4()},
        "of a day": {"created_after": _day(200), "created_before": _day(199)},
        "before the first": {"created_before": _day(1_000)},
        "behind half": {"after": half},
        "behind nearly all": {"after": last},
        "behind half, active first": {"after": half, "active_first": True},
        **{status: {"status": status} for status in STATUSES},
        **{f"{status}, active first": {"status": status, "active_first": True} for status in STATUSES},
        **{f"{status}, behind half": {"status": status, "after": half} for status in STATUSES},
        **{f"{status}, a busy member's": {"status": status, "member_id": MEMBERS[-1]} for status in STATUSES},
    }
    for said, searched in SEARCHES.items():
        filters[f"search {said}"] = {"search": searched or half}
        filters[f"search {said}, active first"] = {"search": searched or half, "active_first": True}
        filters[f"search {said}, behind half"] = {"search": searched or half, "after": half}
        filters[f"search {said}, failed"] = {"search": searched or half, "status": "failed"}
        filters[f"search {said}, completed"] = {"search": searched or half, "status": "completed"}
        filters[f"search {said}, expired"] = {"search": searched or half, "status": "expired"}
        filters[f"search {said}, a busy member's"] = {"search": searched or half, "member_id": MEMBERS[-1]}
        filters[f"search {said}, half a year"] = {"search": searched or half, "created_after": _day(180)}
    return {name: ListBatchesQuery.model_validate({"limit": 100, **each}) for name, each in filters.items()}


STATUSES = ("in_progress", "completed", "failed", "cancelled", "expired")
SEARCHES = {
    "for an id": None,
    "without a match": "no such thing",
    "without a match, all its letters common": "produc stagin batch",
    "of 1 letter": "e",
    "of 1 letter, without a match": "%",
    "of 2 letters": "am",
    "of 2 letters, without a match": "qx",
    "that all match": "batch-",
    "that many match": "production",
    "that some match": "amber birch",
    "that only old ones match": "migration",
    "that only completed ones match": "approved",
    "with letters beyond ASCII": "ÜBERSETZUNG",
}


def _day(ago: int) -> datetime:
    return datetime.fromtimestamp(NOW - ago * DAY_S, UTC)


# What is on record


def _fill(settings: Settings, count: int) -> list[str]:
    """Record the batches: all but the newest at once, these one by one, with a move. Their ids, oldest first."""
    engine = open_database(settings)
    made = _batches(count)
    ids = insert_at_once(engine, itertools.islice(made, count - FRESH))
    records = Records(engine)
    for batch in made:
        ids.append(batch.id)
        records.add_file(_input_of(batch))
        records.add_batch(msgspec.structs.replace(batch, status=S.VALIDATING))
        if batch.status is not S.VALIDATING:
            records.change_status(batch.id, S.IN_PROGRESS, now=batch.created_at + 1)
    records.close()
    settle(settings)
    return ids


def insert_at_once(engine: Engine, made: Iterable[BatchRecord]) -> list[str]:
    """Record the batches, a thousand in a transaction, and return their ids."""
    left, ids = iter(made), []
    while some := list(itertools.islice(left, 1_000)):
        ids += [batch.id for batch in some]
        with engine.begin() as connection:
            connection.execute(insert(batches), [to_columns(msgspec.structs.asdict(batch)) for batch in some])
            connection.execute(insert(batch_index), [index_row(batch) for batch in some])
    return ids


def settle(settings: Settings) -> None:
    """Have PostgreSQL look at its tables, as it does by itself within a minute."""
    engine = open_database(settings)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _input_of(batch: BatchRecord) -> FileRecord:
    return FileRecord(
        id=batch.input_file_id,
        purpose="batch",
        filename=batch.input_filename,
        size_bytes=1,
        created_at=batch.created_at,
        key=f"files/{batch.input_file_id}/content.jsonl",
        status="processed",
    )


def _batches(count: int) -> Iterator[BatchRecord]:
    """A year's batches, oldest first; the last few hundred are not over, and some of these overdue."""
    chance = random.Random(count)
    for number in range(count):
        created = NOW - YEAR_S + YEAR_S * number // count
        active = number >= count - 2 * FRESH
        yield _active(chance, created) if active else _over(chance, created, number / count)


def finished_batches(count: int) -> Iterator[BatchRecord]:
    """A year's batches, oldest first, all of them over."""
    chance = random.Random(count)
    for number in range(count):
        yield _over(chance, NOW - YEAR_S + YEAR_S * number // count, number / count)


def _active(chance: random.Random, created: int) -> BatchRecord:
    states = (S.VALIDATING, S.IN_PROGRESS, S.IN_PROGRESS, S.FINALIZING, S.CANCELLING)
    window = chance.choice((3_600, DAY_S, 7 * DAY_S))
    return _batch(chance, created, status=chance.choice(states), expires_at=created + window)


def _over(chance: random.Random, created: int, age: float) -> BatchRecord:
    status = chance.choices((S.COMPLETED, S.FAILED, S.CANCELLED, S.EXPIRED), (85, 8, 4, 3))[0]
    ended = created + int(chance.lognormvariate(9, 1.2))  # some two hours
    fields: dict[str, Any] = {f"{status}_at": ended}
    metadata = _metadata(chance)
    if age < 0.25:
        metadata["project"] = "migration"
    if status is S.COMPLETED and chance.random() < 0.6:
        metadata["review"] = "approved"
    if status is S.FAILED:
        wrong = 1_000 if chance.random() < 0.01 else chance.randrange(1, 5)
        fields["errors"] = tuple(
            BatchError(code="invalid_value", line=line, message="body.model is not a string", param="body.model")
            for line in range(1, wrong + 1)
        )
    else:
        fields["analytics"] = BatchAnalytics(
            total_requests=5_000, total_prompt_tokens=285_000, total_tokens=765_000, avg_duration_ms=812.4
        )
    return _batch(chance, created, status=status, expires_at=created + DAY_S, metadata=metadata, **fields)


def _batch(chance: random.Random, created: int, **fields: Any) -> BatchRecord:
    hexes = f"{created * 1_000 + chance.randrange(1_000):012x}7{chance.getrandbits(76):019x}"
    name = f"{chance.choice(WORDS)}-{chance.choice(WORDS)}-{chance.randrange(1_000)}.jsonl"
    over = fields["status"] in TERMINAL_STATUSES
    settled = {
        "id": f"batch-{hexes}",
        "endpoint": "/v1/chat/completions",
        "input_file_id": f"file-{chance.getrandbits(128):032x}",
        "input_filename": name if chance.random() > 0.02 else f"Übersetzung-{name}",
        "completion_window": "24h",
        "created_at": created,
        "in_progress_at": created + 2,
        "output_file_id": f"file-{chance.getrandbits(128):032x}",
        "error_file_id": f"file-{chance.getrandbits(128):032x}",
        "total": 5_000,
        "completed": 4_990 if over else 1_200,
        "failed": 10 if over else 0,
        "metadata": _metadata(chance),
        "dwext": BatchDwExtResponse(source="api"),
        "member_id": chance.choices(MEMBERS, [1] * 24 + [36])[0],
    }
    return BatchRecord(**{**settled, **fields})


def _metadata(chance: random.Random) -> dict[str, str]:
    pairs = {
        "team": chance.choice(TEAMS),
        "environment": chance.choice(("production", "staging")),
        "run": str(uuid.UUID(int=chance.getrandbits(128))),
        "owner": f"{chance.choice(WORDS)}@example.com",
        "note": " ".join(chance.choices(WORDS, k=8)),
    }
    return {key: pairs[key] for key in chance.sample(sorted(pairs), chance.randrange(len(pairs) + 1))}

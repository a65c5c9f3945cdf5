"""A database that comes back older than the storage: finished files are taken, and nothing is sent again."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from helpers.batch_assertions import check_account, errors_of, interrupt, output_of, received
from helpers.storage_servers import S3Server

from batchline import Batchline
from batchline.client.housekeeping import run_housekeeping
from batchline.engine.pipeline import run_local
from batchline.engine.retry import retry_batch
from batchline.engine.services import Services
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.steps.plans import read_first_plan
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord

TOTAL = 60


class Backup:
    """A copy of an engine's database, which can be put back."""

    def __init__(self, engine: Services, path: Path) -> None:
        self._engine, self._path = engine, path
        _copy(engine.settings.home / "batchline.db", path)

    def restore(self) -> None:
        """Put it back as a person would, while nothing runs."""
        self._engine.records.close()
        _copy(self._path, self._engine.settings.home / "batchline.db")


def _copy(source: Path, target: Path) -> None:
    one, other = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(other)
    one.close()
    other.close()


@pytest.fixture
def stand_in(simulator: Callable[..., Simulator]) -> Simulator:
    return simulator(server_error=0.4, latency_s=0.02)


@pytest.fixture
def engine(engine_for: Callable[..., Services], stand_in: Simulator) -> Services:
    few = {"max_attempts": 1, "max_in_flight": 4}
    return engine_for(stand_in.base_url, upstream=few, chunk_requests=10, flush_interval_s=0.05)


@pytest.fixture
def stopped_early(engine: Services, stand_in: Simulator, in_background: Callable) -> Callable[[BatchRecord], None]:
    """Run a batch until some of what it sends is answered, and stop it."""

    def stop(batch: BatchRecord) -> None:
        before = received(stand_in)
        interrupt(batch, in_background(engine, batch), once=lambda: received(stand_in) >= before + 8)

    return stop


def clean_up(engine: Services, batch: BatchRecord) -> None:
    """Delete what the batch has left, as housekeeping does an hour after its end."""
    for some in engine.records.due_deletions(now=2**40):
        engine.records.schedule_deletion(msgspec.structs.replace(some, due_at=0))
    assert [chore.error for chore in run_housekeeping(Batchline(services=engine), apply=True) if chore.error] == []
    keys = [info.key for info in engine.store.list_objects(layout.batch_prefix(batch.id))]
    assert [key for key in keys if "/parts/" in key or "/segments/" in key] == []


def check_same(engine: Services, restored: BatchRecord, before: BatchRecord) -> None:
    check_account(engine, restored, TOTAL)
    for name in ("status", "total", "completed", "failed", "generation", "analytics", "final_prefix"):
        assert getattr(restored, name) == getattr(before, name), name


@pytest.mark.parametrize("cleaned", [True, False], ids=["parts deleted", "parts there"])
def test_batch_ended_after_backup_restores_same_files(
    cleaned: bool,
    engine: Services,
    stand_in: Simulator,
    batch_of: Callable,
    stopped_early: Callable,
    tmp_path: Path,
) -> None:
    batch = batch_of(engine, TOTAL)
    stopped_early(batch)
    backup = Backup(engine, tmp_path / "copy.db")
    ended = run_local(engine, batch.id)
    sent, lines = received(stand_in), (output_of(engine, ended), errors_of(engine, ended))
    if cleaned:
        clean_up(engine, ended)

    backup.restore()
    assert engine.records.get_batch(batch.id).status is BatchStatus.IN_PROGRESS
    restored = run_local(engine, batch.id)

    assert received(stand_in) == sent
    check_same(engine, restored, ended)
    assert (output_of(engine, restored), errors_of(engine, restored)) == lines


def test_parts_are_kept_for_an_hour_after_batch_end(engine: Services, batch_of: Callable) -> None:
    ended = run_local(engine, batch_of(engine, TOTAL).id)
    assert engine.store.list_objects(layout.parts_prefix(ended.id, 0)) != []

    [doomed] = engine.records.due_deletions(now=2**40)
    assert doomed.prefix == layout.generation_prefix(ended.id, 0)
    assert doomed.due_at - ended.ended_at == pytest.approx(3_600, abs=60)
    clean_up(engine, ended)


def test_due_objects_are_deleted_when_next_batch_ends(engine: Services, batch_of: Callable) -> None:
    first = run_local(engine, batch_of(engine, TOTAL).id)
    [doomed] = engine.records.due_deletions(now=2**40)
    engine.records.schedule_deletion(msgspec.structs.replace(doomed, due_at=0))

    run_local(engine, batch_of(engine, TOTAL).id)

    assert engine.store.list_objects(layout.parts_prefix(first.id, 0)) == []


def test_batch_unvalidated_in_backup_restores_same_files(
    engine: Services, stand_in: Simulator, batch_of: Callable, tmp_path: Path
) -> None:
    batch = batch_of(engine, TOTAL)
    backup = Backup(engine, tmp_path / "copy.db")
    ended = run_local(engine, batch.id)
    clean_up(engine, ended)
    engine.records.delete_file(ended.input_file_id)
    engine.store.delete([layout.input_key(ended.input_file_id)])
    sent = received(stand_in)

    backup.restore()
    restored = run_local(engine, batch.id)

    assert received(stand_in) == sent
    check_same(engine, restored, ended)


def test_batch_started_after_backup_continues_with_same_chunks(
    engine: Services,
    engine_for: Callable[..., Services],
    stand_in: Simulator,
    batch_of: Callable,
    stopped_early: Callable,
    tmp_path: Path,
) -> None:
    batch = batch_of(engine, TOTAL)
    backup = Backup(engine, tmp_path / "copy.db")
    stopped_early(batch)
    plan = read_first_plan(engine.store, batch.id)

    backup.restore()
    other = engine_for(stand_in.base_url, upstream={"max_attempts": 1}, chunk_requests=7)
    ended = run_local(other, batch.id)

    assert read_first_plan(engine.store, batch.id) == plan
    assert stand_in.counters()["repeated"] <= 4
    check_account(engine, ended, TOTAL)


@pytest.mark.parametrize("retries", [1, 2])
def test_retry_ended_after_backup_restores_newest_files(
    retries: int,
    engine: Services,
    stand_in: Simulator,
    batch_of: Callable,
    stopped_early: Callable,
    tmp_path: Path,
) -> None:
    batch = run_local(engine, batch_of(engine, TOTAL).id)
    stopped_early(retry_batch(engine, batch.id))
    backup = Backup(engine, tmp_path / "copy.db")
    ended = run_local(engine, batch.id)
    for _ in range(retries - 1):
        ended = run_local(engine, retry_batch(engine, batch.id).id)
    clean_up(engine, ended)
    sent = received(stand_in)

    backup.restore()
    restored = run_local(engine, batch.id)

    assert received(stand_in) == sent
    check_same(engine, restored, ended)
    again = run_local(engine, retry_batch(engine, batch.id).id)
    assert again.generation == ended.generation + 1
    assert received(stand_in) == sent + restored.failed
    check_account(engine, again, TOTAL)


def test_retry_after_restore_ignores_parts_of_unknown_retry(
    engine: Services, stand_in: Simulator, batch_of: Callable, stopped_early: Callable, tmp_path: Path
) -> None:
    batch = run_local(engine, batch_of(engine, TOTAL).id)
    backup = Backup(engine, tmp_path / "copy.db")
    failed = [line["id"] for line in errors_of(engine, batch)]
    stopped_early(retry_batch(engine, batch.id, failed[1:]))

    backup.restore()
    sent = received(stand_in)
    ended = run_local(engine, retry_batch(engine, batch.id).id)

    assert received(stand_in) == sent + len(failed)
    assert sorted(line["id"] for line in errors_of(engine, ended) + output_of(engine, ended)) == sorted(
        line["id"] for line in errors_of(engine, batch) + output_of(engine, batch)
    )


def test_batch_retried_after_backup_can_be_retried_again(
    engine: Services, stand_in: Simulator, batch_of: Callable, tmp_path: Path
) -> None:
    batch = run_local(engine, batch_of(engine, TOTAL).id)
    backup = Backup(engine, tmp_path / "copy.db")
    ended = run_local(engine, retry_batch(engine, batch.id).id)
    sent = received(stand_in)

    backup.restore()
    again = run_local(engine, retry_batch(engine, batch.id).id)

    assert received(stand_in) == sent + ended.failed
    check_account(engine, again, TOTAL)


def test_batch_cancelled_after_backup_is_cancelled(
    engine: Services, stand_in: Simulator, batch_of: Callable, stopped_early: Callable, tmp_path: Path
) -> None:
    batch = batch_of(engine, TOTAL)
    stopped_early(batch)
    backup = Backup(engine, tmp_path / "copy.db")
    Batchline(services=engine).batches.cancel(batch.id)
    ended = run_local(engine, batch.id)
    assert ended.status is BatchStatus.CANCELLED
    clean_up(engine, ended)

    backup.restore()
    restored = run_local(engine, batch.id)

    check_same(engine, restored, ended)


def test_incomplete_files_after_restore_are_not_treated_as_finished(
    engine: Services, stand_in: Simulator, batch_of: Callable, tmp_path: Path
) -> None:
    batch = batch_of(engine, TOTAL)
    backup = Backup(engine, tmp_path / "copy.db")
    ended = run_local(engine, batch.id)
    engine.store.delete([layout.output_key(batch.id)])

    backup.restore()
    restored = run_local(engine, batch.id)

    check_same(engine, restored, ended)


@pytest.mark.system
def test_batch_on_s3_ended_after_backup_restores_same_files(
    engine_for: Callable[..., Services],
    s3_server: S3Server,
    stand_in: Simulator,
    batch_of: Callable,
    tmp_path: Path,
) -> None:
    place = s3_server.settings()
    settings = place.model_dump(include=place.model_fields_set)
    engine = engine_for(stand_in.base_url, upstream={"max_attempts": 1}, chunk_requests=10, **settings)
    batch = batch_of(engine, TOTAL)
    backup = Backup(engine, tmp_path / "copy.db")
    run_local(engine, batch.id)
    ended = run_local(engine, retry_batch(engine, batch.id).id)
    clean_up(engine, ended)
    sent = received(stand_in)

    backup.restore()
    restored = run_local(engine, batch.id)

    assert received(stand_in) == sent
    check_same(engine, restored, ended)

"""A database that comes back older than the storage: finished files are taken, and nothing is sent again."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from helpers.batch_assertions import check_results, errors_of, interrupt_run, output_of, received

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
    """A copy of a database, which can be put back."""

    def __init__(self, services: Services, path: Path) -> None:
        self._engine, self._path = services, path
        _copy(services.settings.home / "batchline.db", path)

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
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(server_error=0.4, latency_s=0.02)


@pytest.fixture
def services(make_services: Callable[..., Services], simulator: Simulator) -> Services:
    few = {"max_attempts": 1, "max_in_flight": 4}
    return make_services(simulator.base_url, upstream=few, chunk_requests=10, flush_interval_s=0.05)


@pytest.fixture
def stop_early(services: Services, simulator: Simulator, in_background: Callable) -> Callable[[BatchRecord], None]:
    """Run a batch until some of what it sends is answered, and stop it."""

    def stop(batch: BatchRecord) -> None:
        before = received(simulator)
        interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) >= before + 8)

    return stop


def clean_up(services: Services, batch: BatchRecord) -> None:
    """Delete what the batch has left, as housekeeping does an hour after its end."""
    for some in services.records.due_deletions(now=2**40):
        services.records.schedule_deletion(msgspec.structs.replace(some, due_at=0))
    assert [
        chore.error for chore in run_housekeeping(Batchline(services=services), apply=True) if chore.error
    ] == []
    keys = [info.key for info in services.store.list_objects(layout.batch_prefix(batch.id))]
    assert [key for key in keys if "/parts/" in key or "/segments/" in key] == []


def check_same(services: Services, restored: BatchRecord, before: BatchRecord) -> None:
    check_results(services, restored, TOTAL)
    for name in ("status", "total", "completed", "failed", "generation", "analytics", "final_prefix"):
        assert getattr(restored, name) == getattr(before, name), name


@pytest.mark.parametrize("cleaned", [True, False], ids=["parts deleted", "parts there"])
def test_batch_ended_after_backup_restores_same_files(
    cleaned, services, simulator, create_batch, stop_early, tmp_path
):
    batch = create_batch(services, TOTAL)
    stop_early(batch)
    backup = Backup(services, tmp_path / "copy.db")
    ended = run_local(services, batch.id)
    sent, lines = received(simulator), (output_of(services, ended), errors_of(services, ended))
    if cleaned:
        clean_up(services, ended)

    backup.restore()
    assert services.records.get_batch(batch.id).status is BatchStatus.IN_PROGRESS
    restored = run_local(services, batch.id)

    assert received(simulator) == sent
    check_same(services, restored, ended)
    assert (output_of(services, restored), errors_of(services, restored)) == lines


def test_parts_are_kept_for_an_hour_after_batch_end(services, create_batch):
    ended = run_local(services, create_batch(services, TOTAL).id)
    assert services.store.list_objects(layout.parts_prefix(ended.id, 0)) != []

    [doomed] = services.records.due_deletions(now=2**40)
    assert doomed.prefix == layout.generation_prefix(ended.id, 0)
    assert doomed.due_at - ended.ended_at == pytest.approx(3_600, abs=60)
    clean_up(services, ended)


def test_due_objects_are_deleted_when_next_batch_ends(services, create_batch):
    first = run_local(services, create_batch(services, TOTAL).id)
    [doomed] = services.records.due_deletions(now=2**40)
    services.records.schedule_deletion(msgspec.structs.replace(doomed, due_at=0))

    run_local(services, create_batch(services, TOTAL).id)

    assert services.store.list_objects(layout.parts_prefix(first.id, 0)) == []


def test_batch_unvalidated_in_backup_restores_same_files(services, simulator, create_batch, tmp_path):
    batch = create_batch(services, TOTAL)
    backup = Backup(services, tmp_path / "copy.db")
    ended = run_local(services, batch.id)
    clean_up(services, ended)
    services.records.delete_file(ended.input_file_id)
    services.store.delete([layout.input_key(ended.input_file_id)])
    sent = received(simulator)

    backup.restore()
    restored = run_local(services, batch.id)

    assert received(simulator) == sent
    check_same(services, restored, ended)


def test_batch_started_after_backup_continues_with_same_chunks(
    services, make_services, simulator, create_batch, stop_early, tmp_path
):
    batch = create_batch(services, TOTAL)
    backup = Backup(services, tmp_path / "copy.db")
    stop_early(batch)
    plan = read_first_plan(services.store, batch.id)

    backup.restore()
    other = make_services(simulator.base_url, upstream={"max_attempts": 1}, chunk_requests=7)
    ended = run_local(other, batch.id)

    assert read_first_plan(services.store, batch.id) == plan
    assert simulator.counters()["repeated"] <= 4
    check_results(services, ended, TOTAL)


@pytest.mark.parametrize("retries", [1, 2])
def test_retry_ended_after_backup_restores_newest_files(
    retries, services, simulator, create_batch, stop_early, tmp_path
):
    batch = run_local(services, create_batch(services, TOTAL).id)
    stop_early(retry_batch(services, batch.id))
    backup = Backup(services, tmp_path / "copy.db")
    ended = run_local(services, batch.id)
    for _ in range(retries - 1):
        ended = run_local(services, retry_batch(services, batch.id).id)
    clean_up(services, ended)
    sent = received(simulator)

    backup.restore()
    restored = run_local(services, batch.id)

    assert received(simulator) == sent
    check_same(services, restored, ended)
    again = run_local(services, retry_batch(services, batch.id).id)
    assert again.generation == ended.generation + 1
    assert received(simulator) == sent + restored.failed
    check_results(services, again, TOTAL)


def test_retry_after_restore_ignores_parts_of_unknown_retry(
    services, simulator, create_batch, stop_early, tmp_path
):
    batch = run_local(services, create_batch(services, TOTAL).id)
    backup = Backup(services, tmp_path / "copy.db")
    failed = [line["id"] for line in errors_of(services, batch)]
    stop_early(retry_batch(services, batch.id, failed[1:]))

    backup.restore()
    sent = received(simulator)
    ended = run_local(services, retry_batch(services, batch.id).id)

    assert received(simulator) == sent + len(failed)
    assert sorted(line["id"] for line in errors_of(services, ended) + output_of(services, ended)) == sorted(
        line["id"] for line in errors_of(services, batch) + output_of(services, batch)
    )


def test_batch_retried_after_backup_can_be_retried_again(services, simulator, create_batch, tmp_path):
    batch = run_local(services, create_batch(services, TOTAL).id)
    backup = Backup(services, tmp_path / "copy.db")
    ended = run_local(services, retry_batch(services, batch.id).id)
    sent = received(simulator)

    backup.restore()
    again = run_local(services, retry_batch(services, batch.id).id)

    assert received(simulator) == sent + ended.failed
    check_results(services, again, TOTAL)


def test_batch_cancelled_after_backup_is_cancelled(services, simulator, create_batch, stop_early, tmp_path):
    batch = create_batch(services, TOTAL)
    stop_early(batch)
    backup = Backup(services, tmp_path / "copy.db")
    Batchline(services=services).batches.cancel(batch.id)
    ended = run_local(services, batch.id)
    assert ended.status is BatchStatus.CANCELLED
    clean_up(services, ended)

    backup.restore()
    restored = run_local(services, batch.id)

    check_same(services, restored, ended)


def test_incomplete_files_after_restore_are_not_treated_as_finished(services, simulator, create_batch, tmp_path):
    batch = create_batch(services, TOTAL)
    backup = Backup(services, tmp_path / "copy.db")
    ended = run_local(services, batch.id)
    services.store.delete([layout.output_key(batch.id)])

    backup.restore()
    restored = run_local(services, batch.id)

    check_same(services, restored, ended)


@pytest.mark.system
def test_batch_on_s3_ended_after_backup_restores_same_files(
    make_services, s3_server, simulator, create_batch, tmp_path
):
    place = s3_server.settings()
    settings = place.model_dump(include=place.model_fields_set)
    services = make_services(simulator.base_url, upstream={"max_attempts": 1}, chunk_requests=10, **settings)
    batch = create_batch(services, TOTAL)
    backup = Backup(services, tmp_path / "copy.db")
    run_local(services, batch.id)
    ended = run_local(services, retry_batch(services, batch.id).id)
    clean_up(services, ended)
    sent = received(simulator)

    backup.restore()
    restored = run_local(services, batch.id)

    assert received(simulator) == sent
    check_same(services, restored, ended)

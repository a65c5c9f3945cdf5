"""Housekeeping: names what is to be done, does it when told to, and then finds nothing more."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.kill_points import expire_lease, failing_client, make_deletions_due
from helpers.polling import until
from helpers.record_edits import change_batch, change_file
from helpers.request_files import read_lines, write_requests

from batchline.client.housekeeping import run_housekeeping
from batchline.client.maintenance import MaintenanceThread
from batchline.models.errors import BatchlineError, NotFound, StorageFault
from batchline.steps import segment_writer
from batchline.storage.objects import layout


@pytest.fixture(autouse=True)
def fail_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner whose storage is gone does not wait for it to come back."""
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.0)
    monkeypatch.setattr(segment_writer, "STORAGE_PAUSE_S", 0.01)


def named(found) -> list[tuple[str, str]]:
    return [(chore.kind, chore.subject) for chore in found]


def run_all_chores(here) -> list[tuple[str, str]]:
    """Apply housekeeping and return its chores; check that none is left afterwards."""
    wanted = named(run_housekeeping(here.client))
    done = list(run_housekeeping(here.client, apply=True))
    assert named(done) == wanted
    assert [chore for chore in done if not chore.done] == []
    assert list(run_housekeeping(here.client)) == []
    return wanted


def made(here, tmp_path, count=30, prompt="Question {}?".format, **create):
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count, prompt=prompt))
    return here.client.batches.create(input_file_id=file.id, via=None, **create)


def run_until_failure(here, batch, writes: int) -> None:
    """The batch has been run by somebody who died at the write behind so many."""
    client, life = failing_client(here.client.services, writes)
    with pytest.raises(BatchlineError):
        client.batches.run(batch.id)
    assert life.is_over
    expire_lease(here.client.services, batch.id)


def test_housekeeping_of_healthy_store_finds_nothing(make_client, tmp_path):
    here = make_client(upstream={"max_attempts": 1})
    waiting = made(here, tmp_path)
    ended = made(here, tmp_path, prompt=lambda number: f"{number} simulate:status=400" if number % 2 else "Well?")
    here.client.batches.run(ended.id)
    retried = made(here, tmp_path, 20, prompt="simulate:status=400 {}".format)
    for _ in range(2):
        here.client.batches.run(retried.id)
        here.client.batches.retry(retried.id, via=None)

    assert list(run_housekeeping(here.client)) == []
    assert here.client.batches.retrieve(waiting.id).status == "validating"


@pytest.mark.parametrize("place", ["sqlite_and_disk"], indirect=True)
def test_maintenance_restarts_failing_batch_with_growing_delays(make_client, tmp_path, caplog):
    here = make_client()
    batch = made(here, tmp_path)
    in_the_way = tmp_path / "home" / "storage" / "batches" / batch.id / "g0"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # so that no answer can be saved below it

    with MaintenanceThread(here.client, interval_s=0.1):
        stops = lambda: [r.created for r in caplog.records if r.message.startswith(f"batch {batch.id} stopped")]  # noqa: E731
        until(lambda: len(stops()) >= 5)
        gaps = [later - earlier for earlier, later in pairwise(stops())]
        in_the_way.unlink()
        until(lambda: here.client.batches.retrieve(batch.id).status == "completed")

    assert all(gap >= 0.1 * 2**number for number, gap in enumerate(gaps))
    assert here.simulator.counters()["received"] == 30


@pytest.mark.parametrize("place", ["sqlite_and_disk"], indirect=True)
def test_maintenance_continues_after_unexpected_error(make_client, tmp_path, monkeypatch, caplog):
    here = make_client()
    batch = made(here, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(here.client.batches, "records", lambda **_: 1 / 0)
        with MaintenanceThread(here.client, interval_s=0.05):
            until(lambda: caplog.text.count("ZeroDivisionError") >= 2)
            broken.undo()
            until(lambda: here.client.batches.retrieve(batch.id).status == "completed")


LEFT = {
    "plan.json",
    "output.jsonl",
    "errors.jsonl",
    "requests.parquet",
    "manifest.json",
    "report.json",
    "report.html",
}
"""Objects that a finished batch has in storage."""


def test_housekeeping_completes_batch_of_dead_runner(make_client, tmp_path):
    here = make_client(chunk_requests=10, flush_interval_s=0.05)
    resumed = 0
    for writes in range(2, 30, 3):
        batch = made(here, tmp_path)
        client, _ = failing_client(here.client.services, writes)
        try:
            client.batches.run(batch.id)
        except BatchlineError:
            expire_lease(here.client.services, batch.id)
        if here.client.batches.retrieve(batch.id).status != "completed":
            [chore] = run_housekeeping(here.client)
            assert (chore.kind, chore.subject, chore.done) == ("resume", batch.id, False), writes
            assert "died" in chore.reason, writes
            resumed += 1
        run_all_chores(here)
        make_deletions_due(here.client.services)
        run_all_chores(here)

        ended = here.client.batches.retrieve(batch.id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 30), writes
        left = here.client.services.store.list_objects(layout.batch_prefix(batch.id))
        assert {info.key.rpartition("/")[2] for info in left} == LEFT, writes
    assert resumed >= 5


def test_housekeeping_without_resume_only_reports_batches(make_client, tmp_path):
    here = make_client()
    batch = made(here, tmp_path)
    run_until_failure(here, batch, 3)

    sent = here.simulator.counters()["received"]

    [chore] = run_housekeeping(here.client, apply=True, resume=False)

    assert (chore.kind, chore.done) == ("resume", False)
    assert here.simulator.counters()["received"] == sent


def test_housekeeping_expires_batch_after_its_window(make_client, tmp_path):
    here = make_client()
    batch = made(here, tmp_path)
    change_batch(here.client.services.records, batch.id, expires_at=int(time.time()) - 1)

    assert run_all_chores(here) == [("resume", batch.id)]
    assert here.client.batches.retrieve(batch.id).status == "expired"


def test_housekeeping_ignores_running_batch(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 2})
    batch = made(here, tmp_path)
    here.client.batches.resume(batch.id)
    while not here.simulator.counters()["received"]:
        time.sleep(0.01)

    assert list(run_housekeeping(here.client)) == []


def test_housekeeping_deletes_expired_file_once_unneeded(make_client, tmp_path):
    here = make_client()
    path = write_requests(tmp_path / "r.jsonl", 3)
    file = here.client.files.create(file=path, expires_after={"anchor": "created_at", "seconds": 3_600})
    assert file.expires_at == file.created_at + 3_600
    batch = here.client.batches.create(input_file_id=file.id, via=None)
    change_file(here.client.services.records, file.id, expires_at=int(time.time()) - 1)

    assert list(run_housekeeping(here.client)) == []
    here.client.batches.run(batch.id)

    assert run_all_chores(here) == [("delete_file", file.id)]
    with pytest.raises(NotFound):
        here.client.files.retrieve(file.id)
    assert not here.client.services.store.exists(layout.input_key(file.id))


def test_result_files_expire_as_set_at_creation(make_client, tmp_path):
    here = make_client()
    batch = made(
        here,
        tmp_path,
        4,
        prompt=lambda number: "simulate:status=400" if number else "Well?",
        output_expires_after=60,
    )
    ended = here.client.batches.run(batch.id)
    ids = {ended.output_file_id, ended.error_file_id}
    for each in ids:
        file = here.client.files.retrieve(each)
        assert file.expires_at == ended.completed_at + 60
        change_file(here.client.services.records, each, expires_at=1)

    assert sorted(run_all_chores(here)) == sorted(("delete_file", each) for each in ids)
    assert here.client.batches.retrieve(batch.id) == ended
    assert not here.client.services.store.exists(layout.output_key(batch.id))


def test_result_file_rewritten_by_retry_gets_new_expiry(make_client, tmp_path):
    here = make_client()
    batch = made(here, tmp_path, 4, prompt="simulate:status=400 {}".format, output_expires_after=3_600)
    first = here.client.batches.run(batch.id)
    change_file(here.client.services.records, first.error_file_id, expires_at=int(time.time()) + 1)
    here.client.batches.retry(batch.id, via=None)
    change_file(here.client.services.records, first.error_file_id, expires_at=int(time.time()) - 1)

    ended = here.client.batches.run(batch.id)

    assert here.client.files.retrieve(ended.error_file_id).expires_at == ended.failed_at + 3_600
    assert [chore for chore in run_housekeeping(here.client) if chore.kind == "delete_file"] == []


def test_housekeeping_deletes_interrupted_upload_after_a_day(make_client, tmp_path):
    here = make_client()
    client, _ = failing_client(here.client.services, 2)
    with pytest.raises(StorageFault):
        client.files.create(file=write_requests(tmp_path / "r.jsonl", 3))

    assert list(here.client.files.list()) == []
    assert list(run_housekeeping(here.client)) == []
    make_deletions_due(here.client.services)
    assert [kind for kind, _ in run_all_chores(here)] == ["delete_objects"]
    assert here.client.services.store.list_objects("") == []


def test_housekeeping_completes_interrupted_deletion(make_client, tmp_path):
    here = make_client()
    for writes in range(1, 7):
        batch = here.client.batches.run(made(here, tmp_path).id)
        client, _ = failing_client(here.client.services, writes)
        client.batches.delete(batch.id)

        with pytest.raises(NotFound):
            here.client.batches.retrieve(batch.id)
        assert run_all_chores(here) == [("delete_objects", layout.batch_prefix(batch.id))], writes
        keys = [info.key for info in here.client.services.store.list_objects("")]
        assert keys == [layout.input_key(batch.input_file_id)], writes
        here.client.files.delete(batch.input_file_id)


def test_objects_replaced_by_retry_are_kept_for_readers_then_deleted(make_client, tmp_path):
    here = make_client()
    batch = made(here, tmp_path, 4, prompt=lambda number: "simulate:status=400" if number else "Well?")
    here.client.batches.run(batch.id)
    here.client.batches.retry(batch.id, via=None)
    ended = here.client.batches.run(batch.id)
    content = read_lines(here.client, ended.error_file_id)

    assert list(run_housekeeping(here.client)) == []
    make_deletions_due(here.client.services)
    done = run_all_chores(here)
    assert {kind for kind, _ in done} == {"delete_objects"}
    assert all(subject.startswith(layout.batch_prefix(batch.id)) for _, subject in done)
    assert read_lines(here.client, ended.error_file_id) == content
    assert len(list(here.client.batches.results(batch.id))) == 4


def test_retry_survives_cleanup_left_over_from_previous_end(make_client, tmp_path, monkeypatch):
    here = make_client()
    batch = made(here, tmp_path, 4, prompt=lambda number: "simulate:status=400" if number else "Well?")

    def refuse(keys: list[str]) -> None:
        raise StorageFault("the disk is away")

    with monkeypatch.context() as here_only:
        here_only.setattr(here.client.services.store, "delete", refuse)
        ended = here.client.batches.run(batch.id)
    assert (ended.status, ended.request_counts.failed) == ("completed", 3)

    here.client.batches.retry(batch.id, via=None)
    list(run_housekeeping(here.client, apply=True))

    assert [line["custom_id"] for line in read_lines(here.client, ended.output_file_id)] == ["request-0"]
    again = here.client.batches.run(batch.id)
    assert (again.status, again.request_counts.completed, again.request_counts.failed) == ("completed", 1, 3)


def test_housekeeping_discards_stale_temporary_file_after_a_day(make_client, tmp_path, place):
    if "storage_url" in place:
        pytest.skip("a matter of the disk; of S3's unfinished uploads tests/storage tells")
    here = make_client()
    batch = made(here, tmp_path)
    half = Path(here.client.services.store.uri(layout.input_key(batch.input_file_id))).with_name(
        f".tmp-{'0a' * 16}"
    )
    half.write_bytes(b"{")
    assert list(run_housekeeping(here.client)) == []
    os.utime(half, (1, 1))

    assert run_all_chores(here) == [("discard_unfinished", str(half))]
    assert not half.exists()


FOREIGN = (
    ".tmp-half",
    f".tmp-{'0a' * 16}",
    f"files/.tmp-{'0a' * 16}",
    f"others/file-{'0a' * 16}/.tmp-{'0a' * 16}",
)


def test_housekeeping_ignores_temporary_files_of_other_programs(make_client, tmp_path, place):
    if "storage_url" in place:
        pytest.skip("a matter of the disk; of S3's unfinished uploads tests/storage tells")
    here = make_client()
    batch = made(here, tmp_path)
    root = Path(here.client.services.store.root)
    own = Path(here.client.services.store.uri(layout.input_key(batch.input_file_id))).parent
    files = [*(root / name for name in FOREIGN), own / ".tmp-notes", own / f".tmp-{'0a' * 16}.txt"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{")
        os.utime(file, (1, 1))

    assert run_all_chores(here) == []
    assert all(file.exists() for file in files)


def test_housekeeping_reports_failed_item_and_continues(make_client, tmp_path, monkeypatch):
    here = make_client()
    files = [here.client.files.create(file=write_requests(tmp_path / "r.jsonl", 3)) for _ in range(2)]
    for file in files:
        change_file(here.client.services.records, file.id, expires_at=1)
    delete = here.client.files.delete

    def refuse_first(file_id: str) -> None:
        if file_id == files[0].id:
            raise StorageFault("the disk is away")
        delete(file_id)

    monkeypatch.setattr(here.client.files, "delete", refuse_first)
    done = list(run_housekeeping(here.client, apply=True))

    assert [(chore.done, chore.error) for chore in done] == [(False, "the disk is away"), (True, None)]

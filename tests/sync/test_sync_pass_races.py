"""Rounds that meet each other, files that change under them, and rounds that die."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.concurrency import forking, in_processes, in_threads
from helpers.kill_points import FailingRecords, FailingStore, WriteBudget, make_deletions_due
from helpers.record_edits import change_synced_files
from helpers.watched_folders import (
    BAD,
    Folder,
    LocalFolder,
    event_kinds,
    list_batches,
    read_inputs,
    request_lines,
    sync_and_run,
    sync_only,
)

from batchline.client import Batchline
from batchline.engine.deletion import delete_objects
from batchline.engine.services import Services, open_services
from batchline.models.errors import StorageFault
from batchline.models.settings import Settings
from batchline.models.sync import SyncOptions, SyncSummary
from batchline.storage.objects.store import ObjectWriter
from batchline.storage.records.store import SyncedVersion
from batchline.sync import local_folder as local_folder_module
from batchline.sync.folder import WatchedFile
from batchline.sync.local_folder import LocalWatchedFolder

FILES = 12


@pytest.fixture
def shared(folder: Folder, database: dict[str, object], make_services: Callable[..., Services]) -> Services:
    """Services on each kind of database."""
    return make_services("http://localhost:9", source_still_s=0, **{**folder.settings, **database})


def assert_sound(services: Services) -> None:
    """Check that only inputs of batches are stored once scheduled deletions are done."""
    make_deletions_due(services)
    for some in services.records.due_deletions(now=time.time()):
        delete_objects(services, some)
    inputs = {services.records.get_file(batch.input_file_id).key for batch in list_batches(services)}
    assert {info.key for info in services.store.list_objects("files/")} == inputs


# Two at once


def sync_pass(number: int, settings: Settings, uri: str, after: str) -> SyncSummary:
    """A round in a process of its own; top-level, so that such a process finds it."""
    del number
    options = SyncOptions(after=after)
    return Batchline(services=open_services(settings)).sync(uri, options, start_batch=lambda batch_id: None)


IN_THREADS = [pytest.param(after, False, id=f"threads-{after}") for after in ("keep", "move", "delete")]
IN_PROCESSES = [pytest.param("move", True, id="processes-move", marks=pytest.mark.system)]


@pytest.mark.parametrize(("after", "apart"), [*IN_THREADS, *IN_PROCESSES])
def test_concurrent_sync_passes_create_one_batch_per_file(after, apart, shared, folder):
    for number in range(FILES):
        folder.put(f"{number:02}.jsonl", request_lines(1, f"File {number}"))
    folder.put("bad.jsonl", BAD)

    if apart:
        rounds = in_processes(2, sync_pass, shared.settings, folder.uri, after)
    else:
        rounds = in_threads(2, lambda _: sync_only(shared, folder, after=after))

    assert [type(each) for each in rounds] == [SyncSummary] * 2
    assert sorted(read_inputs(shared)) == sorted(request_lines(1, f"File {number}") for number in range(FILES))
    assert sum(each.taken for each in rounds) == FILES
    assert [event.reason for each in rounds for event in each.events if event.kind == "failed"] == []
    assert_sound(shared)
    left = [f"{number:02}.jsonl" for number in range(FILES)]
    assert folder.names() == (left if after == "keep" else [])
    assert folder.names("taken") == (left if after == "move" else [])
    assert folder.names("quarantine") == ["bad.jsonl", "bad.jsonl.errors.json"]


def test_concurrent_files_with_same_target_name_both_become_batches(shared, folder):
    """The results of `a.jsonl` and `a.JSONL` would have the same name."""
    for number in range(6):
        folder.put(f"{number}.jsonl", request_lines(1, f"One {number}"))
        folder.put(f"{number}.JSONL", request_lines(1, f"Other {number}"))

    def take(pattern: str) -> SyncSummary:
        return Batchline(services=shared).sync(f"{folder.uri}/{pattern}", start_batch=lambda batch_id: None)

    rounds = in_threads(2, lambda number: take(("*.jsonl", "*.JSONL")[number]))

    assert [each.taken for each in rounds] == [6, 6]
    assert len(read_inputs(shared)) == 12


# Files that change under a round


@pytest.fixture
def act_after_listing(services: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something when the round has listed the files and looks up which of them it knows."""

    def arrange(act: Callable[[], object]) -> None:
        taken = services.records.synced_versions

        def first_act(ids: Any) -> dict[str, SyncedVersion]:
            monkeypatch.setattr(services.records, "synced_versions", taken)
            act()
            return taken(ids)

        monkeypatch.setattr(services.records, "synced_versions", first_act)

    return arrange


@pytest.fixture
def act_while_reading(services: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something when the first block of the file has been read."""

    def arrange(act: Callable[[], object]) -> None:
        writer = services.store.writer

        @contextmanager
        def acting(key: str) -> Iterator[ObjectWriter]:
            monkeypatch.setattr(services.store, "writer", writer)
            with writer(key) as file:
                act()
                yield file

        monkeypatch.setattr(services.store, "writer", acting)

    return arrange


@pytest.fixture
def act_after_recording(services: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something when the batch has just been recorded."""

    def arrange(act: Callable[[], object]) -> None:
        take = services.records.record_synced_file

        def acting(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(services.records, "record_synced_file", take)
            picked = take(*arguments, **options)
            act()
            return picked

        monkeypatch.setattr(services.records, "record_synced_file", acting)

    return arrange


LARGE = request_lines(1) + b"\n" * 20_000_000


@pytest.mark.parametrize("moment", ["act_after_listing", "act_while_reading"])
def test_file_replaced_before_complete_read_waits_for_next_pass(moment, services, folder, request):
    folder.put("a.jsonl", LARGE)
    folder.put("b.jsonl", request_lines(2))
    request.getfixturevalue(moment)(lambda: folder.put("a.jsonl", request_lines(3)))

    first = sync_only(services, folder, after="move")
    assert event_kinds(first) == ["changed", "taken", "moved", "started"]
    assert folder.names() == ["a.jsonl"]
    assert read_inputs(services) == [request_lines(2)]
    assert len(services.store.list_objects("files/")) == 1

    assert sync_only(services, folder).taken == 1
    assert read_inputs(services) == [request_lines(2), request_lines(3)]


@pytest.mark.parametrize("after", ["move", "delete"])
def test_file_replaced_after_read_is_not_moved_or_deleted(after, services, folder, act_after_recording):
    folder.put("a.jsonl", request_lines(2))
    act_after_recording(lambda: folder.put("a.jsonl", request_lines(3)))

    first = sync_only(services, folder, after=after)

    assert event_kinds(first) == ["taken", "started"]
    assert (folder.names(), folder.names("taken")) == (["a.jsonl"], [])
    assert folder.read("a.jsonl") == request_lines(3)
    assert sync_only(services, folder, after=after).taken == 1
    assert read_inputs(services) == [request_lines(2), request_lines(3)]


def test_vanished_file_is_reported(services, folder, act_after_listing):
    folder.put("a.jsonl", request_lines())
    folder.put("b.jsonl", request_lines())
    act_after_listing(lambda: folder.remove("a.jsonl"))

    assert event_kinds(sync_only(services, folder)) == ["changed", "taken", "started"]


def test_invalid_file_replaced_after_read_is_not_quarantined(services, folder, monkeypatch):
    stream = services.store.stream

    def replacing(*arguments: Any, **options: Any) -> Iterator[bytes]:
        monkeypatch.setattr(services.store, "stream", stream)
        folder.put("a.jsonl", request_lines())
        return stream(*arguments, **options)

    folder.put("a.jsonl", BAD)
    monkeypatch.setattr(services.store, "stream", replacing)

    assert event_kinds(sync_only(services, folder)) == ["changed"]
    assert folder.read("a.jsonl") == request_lines()
    assert sync_only(services, folder).taken == 1


def test_local_file_created_during_deletion_is_restored(local_folder, monkeypatch):
    inbox = LocalWatchedFolder(local_folder.path)
    local_folder.put("a.jsonl", b"old")
    [file] = inbox.list_files("")
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        local_folder.put("a.jsonl", b"new")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)

    assert not inbox.delete(file)
    assert local_folder.read("a.jsonl") == b"new"
    assert [path.name for path in local_folder.path.iterdir()] == ["a.jsonl"]


# Deaths


def failing_services(services: Services, writes: int) -> Services:
    """Return the services with storage and records that fail after a number of writes."""
    life = WriteBudget(writes)
    store, records = FailingStore(services.store, life), FailingRecords(services.records, life)
    return Services(settings=services.settings, store=store, records=records)


@pytest.mark.parametrize("after", ["keep", "move", "delete"])
def test_interrupted_sync_pass_is_completed_by_next_pass(after, services, folder):
    died = 0
    for writes in range(40):
        text = request_lines(1, f"Life {writes}")
        folder.put(f"{writes}.jsonl", text)
        try:
            sync_only(failing_services(services, writes), folder, after=after)
        except StorageFault:
            died += 1
        sync_only(services, folder, after=after)

        assert [each for each in read_inputs(services) if each == text] == [text]
        assert services.records.unstarted_batches(str(list_batches(services)[0].dwext.source_id)) == []
        if died and writes > died:
            break
    assert died >= 4
    assert_sound(services)
    assert (folder.names() == []) == (after != "keep")


def test_results_are_complete_after_interrupted_sync_pass(folder, start_simulator, make_services):
    settings = {**folder.settings, "lease_s": 0.5}
    services = make_services(
        start_simulator().base_url, source_still_s=0, upstream={"max_attempts": 1}, **settings
    )
    folder.put("a.jsonl", request_lines(1) + request_lines(2, "simulate:status=400 {}").split(b"\n", 1)[1])
    folder.put("b.jsonl", request_lines(3))
    sync_and_run(services, folder, write_back=False)
    taken = [batch.id for batch in list_batches(services)]
    change_synced_files(services.records, taken, writes_back=True)

    for writes in (0, 1, 2):
        change_synced_files(services.records, taken, written_generation=None)
        with suppress(StorageFault):
            sync_and_run(failing_services(services, writes), folder)
        sync_and_run(services, folder)

        assert folder.names("outbox") == ["a.errors.jsonl", "a.output.jsonl", "b.output.jsonl"]
        assert folder.read("b.output.jsonl", "outbox").count(b"\n") == 3
        assert sync_and_run(services, folder).written_back == 0


def test_file_set_aside_by_killed_sync_pass_is_picked_up(local_folder, make_services, monkeypatch):
    services = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    listed = listed_version(local_folder, "a.jsonl", request_lines(1, "As it was listed"))
    newer = request_lines(1, "As it was when it was to be deleted")
    with monkeypatch.context() as dying:
        dying.setattr(
            LocalWatchedFolder, "_current_version", versions_of_a_file_that_changes(local_folder, "a.jsonl", newer)
        )
        with pytest.raises(KilledError):
            LocalWatchedFolder(local_folder.path).delete(listed)
    assert [name for name in local_folder.names() if not name.startswith(".tmp-")] == []

    sync_only(services, local_folder)
    assert read_inputs(services) == []
    monkeypatch.setattr(local_folder_module, "ASIDE_S", -1)
    sync_only(services, local_folder)

    assert (read_inputs(services), local_folder.names()) == ([newer], ["a.jsonl"])


class KilledError(BaseException):
    """The end of a process at this point."""


def listed_version(folder: LocalFolder, name: str, data: bytes) -> WatchedFile:
    folder.put(name, data)
    return next(LocalWatchedFolder(folder.path).list_files("*.jsonl"))


def versions_of_a_file_that_changes(folder: LocalFolder, name: str, newer: bytes) -> Callable[..., str | None]:
    """Answer for the file's version; it changes after the first answer, and the process ends at the second."""
    original = LocalWatchedFolder._current_version
    asked: list[Path] = []

    def version_at(inbox: LocalWatchedFolder, path: Path) -> str | None:
        asked.append(path)
        if len(asked) == 2:
            raise KilledError
        version = original(inbox, path)
        folder.put(name, newer)
        return version

    return version_at


def sync_forever(settings: Settings, uri: str) -> None:
    """Rounds without end, to be killed."""
    while True:
        sync_pass(0, settings, uri, "move")


@pytest.mark.system
def test_killed_sync_passes_pick_up_each_file_once(shared, folder, monkeypatch):
    texts = [request_lines(1, f"File {number}") for number in range(40)]
    for number, text in enumerate(texts):
        folder.put(f"{number:02}.jsonl", text)

    for seen in (4, 14, 26):
        process = forking.Process(target=sync_forever, args=(shared.settings, folder.uri), daemon=True)
        process.start()
        while len(list_batches(shared)) < seen:
            assert process.is_alive()
            time.sleep(0.05)
        process.kill()
        process.join()
    monkeypatch.setattr(
        local_folder_module, "ASIDE_S", -1
    )  # no other round is at work, and the test does not wait
    sync_only(shared, folder, after="move")

    assert sorted(read_inputs(shared)) == sorted(texts)
    assert (folder.names(), len(folder.names("taken"))) == ([], 40)
    assert_sound(shared)

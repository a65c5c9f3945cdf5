"""Rounds over a watched folder: what is taken, what is left, what goes where."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from helpers.storage_servers import SECRET
from helpers.unprivileged_user import as_nobody
from helpers.watched_folders import (
    BAD,
    Folder,
    LocalFolder,
    event_kinds,
    list_batches,
    parse_errors,
    read_inputs,
    request_lines,
    sync_and_run,
    sync_only,
)
from sqlalchemy import update

from batchline.client import Batchline
from batchline.engine.deletion import DELETION_DELAY_S
from batchline.engine.pipeline import run_local
from batchline.engine.retry import retry_batch
from batchline.engine.services import Services
from batchline.models.errors import BatchlineError, Conflict, InvalidInput, NotFound, StorageFault
from batchline.models.sync import FILE_EVENT_KINDS, SyncOptions
from batchline.storage.records.schema import synced_files
from batchline.sync import sync_pass

# Taking


def test_each_file_becomes_batch_of_its_copy(services, folder):
    folder.put("a.jsonl", request_lines(2))
    folder.put("b.jsonl.gz", gzip.compress(request_lines(3)))
    folder.put("c.jsonl.zst", zstandard.compress(request_lines(4)))

    summary = sync_only(services, folder)

    assert (summary.found, summary.taken, summary.started, summary.failed) == (3, 3, 3, 0)
    assert read_inputs(services) == [request_lines(2), request_lines(3), request_lines(4)]
    assert [batch.input_filename for batch in list_batches(services)] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert folder.names() == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]


def test_batch_records_its_source(services, folder):
    folder.put("a.jsonl", request_lines())
    folder.put("b.jsonl", request_lines())

    summary = sync_only(services, folder, completion_window="3h", metadata={"team": "search"})

    one, other = (batch.to_response() for batch in list_batches(services))
    assert one.dwext is not None
    assert one.dwext.model_dump() == {
        "source": "sync",
        "source_name": folder.uri,
        "source_id": other.dwext.source_id,
        "source_file": "a.jsonl",
        "sync_id": summary.sync_id,
    }
    assert (one.completion_window, one.metadata) == ("3h", {"team": "search"})


def test_endpoint_is_detected_from_file(services, folder):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    folder.put("a.jsonl", json.dumps(line).encode())
    folder.put("b.jsonl", request_lines())

    sync_only(services, folder)

    assert [batch.endpoint for batch in list_batches(services)] == ["/v1/embeddings", "/v1/chat/completions"]


def test_unchanged_file_is_picked_up_once(services, folder):
    folder.put("a.jsonl", request_lines())
    sync_only(services, folder)

    again = sync_only(services, folder)

    assert (again.found, again.unchanged, again.taken, again.started) == (1, 1, 0, 0)
    assert len(list_batches(services)) == 1


def test_changed_file_is_picked_up_again(services, folder):
    folder.put("a.jsonl", request_lines(2))
    sync_only(services, folder)
    folder.put("a.jsonl", request_lines(3))

    assert sync_only(services, folder).taken == 1
    assert read_inputs(services) == [request_lines(2), request_lines(3)]


PATTERNS = {
    "": ["a.jsonl", "b.jsonl.gz"],
    "/": ["a.jsonl", "b.jsonl.gz"],
    "/*.jsonl": ["a.jsonl"],
    "/[ab]*": ["a.jsonl", "b.jsonl.gz"],
    "/a.jsonl": ["a.jsonl"],
    "/*": ["a.jsonl", "b.jsonl.gz", "x.txt"],
    "/none*": [],
}


def test_pattern_selects_files(services, folder):
    for name in ("a.jsonl", ".hidden.jsonl", "x.txt", "..jsonl"):
        folder.put(name, request_lines())
    folder.put("b.jsonl.gz", gzip.compress(request_lines()))

    for pattern, selected in PATTERNS.items():
        summary = Batchline(services=services).sync(folder.uri + pattern, start_batch=pytest.fail, dry_run=True)
        assert [str(event.file).rpartition("/")[2] for event in summary.events] == selected, pattern


def test_subfolders_are_ignored(services, folder):
    if isinstance(folder, LocalFolder):
        (folder.path / "below").mkdir()
        (folder.path / "folder.jsonl").mkdir()
    folder.put("below/a.jsonl", request_lines())

    assert sync_only(services, folder).found == 0


def test_links_and_pipes_are_ignored(make_services, local_folder):
    services = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    (local_folder.path / "link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(local_folder.path / "pipe.jsonl")

    assert sync_only(services, local_folder).found == 0


def test_file_being_written_waits(make_services, local_folder):
    services = make_services("http://localhost:9", source_still_s=0.4, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines(1))

    first = sync_only(services, local_folder)
    assert (first.found, first.waiting, first.taken) == (1, 1, 0)
    assert "once unchanged for 0.4 s" in str(first.events[0].reason)

    time.sleep(0.45)
    assert sync_only(services, local_folder).taken == 1


def test_file_with_reset_modification_time_waits(make_services, local_folder):
    services = make_services("http://localhost:9", source_still_s=60, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines(1))
    os.utime(local_folder.path / "a.jsonl", (1, 1))

    assert sync_only(services, local_folder).waiting == 1


def test_dry_run_changes_nothing(services, folder):
    folder.put("a.jsonl", request_lines())
    folder.put("bad.jsonl", BAD)

    summary = Batchline(services=services).sync(
        folder.uri, SyncOptions(after="move"), start_batch=pytest.fail, dry_run=True
    )

    assert (summary.found, summary.taken, summary.dry_run) == (2, 2, True)
    assert list_batches(services) == []
    assert services.store.list_objects("") == []
    assert folder.names() == ["a.jsonl", "bad.jsonl"]


def test_each_found_file_is_counted_once(services, folder):
    folder.put("a.jsonl", request_lines())
    sync_only(services, folder)
    folder.put("b.jsonl", request_lines(3))
    folder.put("bad.jsonl", BAD)
    folder.put("c.jsonl.gz", b"no gzip")

    summary = sync_only(services, folder, after="move")

    assert summary.found == 4
    assert sum(kind in FILE_EVENT_KINDS for kind in event_kinds(summary)) + summary.unchanged == 4
    assert summary.message == "4 found, 1 taken, 1 started, 1 unchanged, 2 quarantined"


# Putting away


def test_picked_up_file_is_moved_on_request(services, folder):
    folder.put("a.jsonl", request_lines())

    summary = sync_only(services, folder, after="move")

    assert event_kinds(summary) == ["taken", "moved", "started"]
    assert (folder.names(), folder.names("taken")) == ([], ["a.jsonl"])
    assert folder.read("a.jsonl", "taken") == request_lines()


def test_moved_file_does_not_replace_earlier_version(services, folder):
    for count in (1, 2, 3):
        folder.put("a.jsonl", request_lines(count))
        sync_only(services, folder, after="move")

    names = folder.names("taken")
    assert "a.jsonl" in names
    assert sorted(folder.read(name, "taken") for name in names) == sorted(map(request_lines, (1, 2, 3)))
    assert all(name.startswith("a.") and name.endswith(".jsonl") for name in names)


def test_picked_up_file_is_kept_for_an_hour_before_deletion(services, folder, monkeypatch):
    monkeypatch.setattr(sync_pass, "DELETE_AFTER_S", DELETION_DELAY_S)
    folder.put("a.jsonl", request_lines())

    assert event_kinds(sync_only(services, folder, after="delete")) == ["taken", "started"]
    assert event_kinds(sync_only(services, folder, after="delete")) == []
    assert folder.names() == ["a.jsonl"]
    taken_earlier(services, DELETION_DELAY_S + 1)
    assert event_kinds(sync_only(services, folder, after="delete")) == ["deleted"]
    assert folder.names() == []


def taken_earlier(services: Services, by_s: int) -> None:
    """Move the time at which files were picked up into the past."""
    with services.records._engine.begin() as connection:
        connection.execute(update(synced_files).values(taken_at=synced_files.c.taken_at - by_s))


def test_results_are_world_readable_and_storage_is_private(make_services, start_simulator, local_folder):
    umask = os.umask(0o022)
    try:
        services = make_services(start_simulator().base_url, source_still_s=0, **local_folder.settings)
        local_folder.put("a.jsonl", request_lines())
        sync_and_run(services, local_folder)
    finally:
        os.umask(umask)

    [result] = (local_folder.path.parent / "outbox").iterdir()
    assert result.stat().st_mode & 0o777 == 0o644
    home = services.settings.home
    ours = [home, *home.rglob("*")]
    assert len(ours) > 10
    assert [path for path in ours if path.stat().st_mode & 0o077] == []


def test_file_without_stored_copy_is_not_deleted(services, folder):
    folder.put("a.jsonl", request_lines())
    sync_only(services, folder)
    [batch] = list_batches(services)
    services.store.delete([services.records.get_file(batch.input_file_id).key])

    summary = sync_only(services, folder, after="delete")

    assert (event_kinds(summary), summary.failed) == (["failed"], 1)
    assert folder.names() == ["a.jsonl"]


@pytest.mark.parametrize("after", ["move", "delete"])
def test_kept_file_is_moved_or_deleted_by_later_pass(after, services, folder):
    folder.put("a.jsonl", request_lines())
    sync_only(services, folder)

    summary = sync_only(services, folder, after=after)

    assert (summary.unchanged, summary.taken) == (1, 0)
    assert folder.names() == []
    assert len(list_batches(services)) == 1


def test_archive_failure_is_reported_and_batch_started(make_services, local_folder):
    services = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines())
    (local_folder.path.parent / "taken").write_text("a file where the folder should be")

    summary = sync_only(services, local_folder, after="move")

    assert event_kinds(summary) == ["taken", "failed", "started"]
    assert "cannot be moved or deleted" in str(summary.events[1].reason)


# Quarantine


def test_invalid_file_is_quarantined_with_all_errors(services, folder):
    folder.put("bad.jsonl", request_lines(2) + BAD + request_lines(1))
    folder.put("good.jsonl", request_lines())

    summary = sync_only(services, folder)

    assert (summary.quarantined, summary.taken) == (1, 1)
    assert folder.names() == ["good.jsonl"]
    assert folder.names("quarantine") == ["bad.jsonl", "bad.jsonl.errors.json"]
    assert folder.read("bad.jsonl", "quarantine") == request_lines(2) + BAD + request_lines(1)
    errors = parse_errors(folder.read("bad.jsonl.errors.json", "quarantine"))
    assert {error["line"] for error in errors} == {3, 4, 5}
    assert [error["code"] for error in errors if error["line"] == 5] == ["duplicate_custom_id"]
    assert len(list_batches(services)) == 1


def test_quarantine_errors_equal_validate_output(make_services, local_folder, tmp_path, capfdbinary):
    from batchline.cli.validate import validate  # noqa: PLC0415

    services = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(BAD * 2_000)
    local_folder.put("bad.jsonl", BAD * 2_000)

    sync_only(services, local_folder)
    validate(path, json=True)

    printed = json.loads(capfdbinary.readouterr().out)["data"]
    assert parse_errors(local_folder.read("bad.jsonl.errors.json", "quarantine")) == printed


UNUSABLE = {
    "bad.jsonl.gz": gzip.compress(request_lines())[:-10],
    "bad.jsonl.zst": b"no zstd",
    "empty.jsonl": b"",
    "long.jsonl": b"x" * 5_000,
    "long.jsonl.gz": gzip.compress(b"x" * 5_000),
    "raw.jsonl": bytes(range(256)),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_file_does_not_block_others(name, folder, make_services):
    services = make_services("http://localhost:9", source_still_s=0, max_file_bytes=4_000, **folder.settings)
    folder.put(name, UNUSABLE[name])
    folder.put("z.jsonl", request_lines())

    summary = sync_only(services, folder)

    assert (summary.quarantined, summary.taken) == (1, 1)
    assert folder.names() == ["z.jsonl"]
    assert folder.read(name, "quarantine") == UNUSABLE[name]
    assert parse_errors(folder.read(f"{name}.errors.json", "quarantine"))
    assert len(services.store.list_objects("")) == 1


def test_file_returned_from_quarantine_is_checked_again(make_services, local_folder):
    closed = make_services("http://localhost:9", source_still_s=0, max_requests=1, **local_folder.settings)
    opened = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines(2))
    assert sync_only(closed, local_folder).quarantined == 1

    (local_folder.path.parent / "quarantine/a.jsonl").rename(local_folder.path / "a.jsonl")

    assert sync_only(opened, local_folder).taken == 1


def test_quarantined_file_does_not_replace_earlier_version(services, folder):
    for text in (b"one", b"two"):
        folder.put("a.jsonl", text)
        sync_only(services, folder)

    names = folder.names("quarantine")
    assert len(names) == 4
    assert sorted(folder.read(name, "quarantine") for name in names if name.endswith(".jsonl")) == [b"one", b"two"]


def test_unreadable_file_is_reported_and_left(make_services, local_folder):
    services = make_services("http://localhost:9", source_still_s=0, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines())
    local_folder.put("b.jsonl", request_lines())
    (local_folder.path / "a.jsonl").chmod(0)
    store = Path(services.store.root)
    store.mkdir(parents=True, exist_ok=True)
    for path in (store, store.parent, *store.parent.glob("batchline.db*")):
        path.chmod(0o777)
    for path in (*store.parents, local_folder.path):
        path.chmod(path.stat().st_mode | 0o055)

    with as_nobody():
        summary = sync_only(services, local_folder)

    assert [(event.kind, str(event.file)[-7:]) for event in summary.events[:2]] == [
        ("unreadable", "a.jsonl"),
        ("taken", "b.jsonl"),
    ]
    assert summary.failed == 1
    assert local_folder.names() == ["a.jsonl", "b.jsonl"]


# Starting


def test_unstarted_batch_is_started_by_later_pass(services, folder):
    def fails(batch_id: str) -> None:
        raise StorageFault("the server is away")

    folder.put("a.jsonl", request_lines())
    first = Batchline(services=services).sync(folder.uri, start_batch=fails)
    started: list[str] = []

    second = Batchline(services=services).sync(folder.uri, start_batch=started.append)
    third = Batchline(services=services).sync(folder.uri, start_batch=started.append)

    assert (first.taken, first.started, first.failed) == (1, 0, 1)
    assert "the server is away" in str(first.events[-1].reason)
    assert (second.started, third.started) == (1, 0)
    assert started == [list_batches(services)[0].id]


def test_repeated_start_failure_is_reported_once(services, folder):
    def fails(batch_id: str) -> None:
        raise InvalidInput("there is no such deployment")

    for name in ("a.jsonl", "b.jsonl"):
        folder.put(name, request_lines())

    summary = Batchline(services=services).sync(folder.uri, start_batch=fails)

    assert (summary.taken, summary.failed) == (2, 1)


def test_batch_started_elsewhere_counts_as_started(services, folder):
    def taken(batch_id: str) -> None:
        raise Conflict("it is being run")

    folder.put("a.jsonl", request_lines())

    assert Batchline(services=services).sync(folder.uri, start_batch=taken).failed == 0
    assert Batchline(services=services).sync(folder.uri, start_batch=pytest.fail).started == 0


def test_deleted_batch_is_not_started(services, folder):
    def fails(batch_id: str) -> None:
        raise StorageFault("no")

    folder.put("a.jsonl", request_lines())
    Batchline(services=services).sync(folder.uri, start_batch=fails)
    services.records.delete_batch(list_batches(services)[0].id, now=0, lease_s=60)

    assert Batchline(services=services).sync(folder.uri, start_batch=pytest.fail).failed == 0


# Writing back


@pytest.fixture
def running(folder: Folder, start_simulator: Callable, make_services: Callable[..., Services]) -> Services:
    """Services with an upstream that answers."""
    return make_services(
        start_simulator().base_url, source_still_s=0, upstream={"max_attempts": 1}, **folder.settings
    )


SOME_FAIL = request_lines(2) + request_lines(4, "simulate:status=400 {}").split(b"\n", 2)[2]


def test_results_are_written_back_after_batch_end(running, folder):
    folder.put("a.jsonl", SOME_FAIL)

    summary = sync_and_run(running, folder)

    assert event_kinds(summary) == ["taken", "started", "written_back"]
    assert folder.names("outbox") == ["a.errors.jsonl", "a.output.jsonl"]
    prefix = list_batches(running)[0].final_prefix
    for name in ("output.jsonl", "errors.jsonl"):
        assert folder.read(f"a.{name}", "outbox") == running.store.read(f"{prefix}{name}")
    assert sync_and_run(running, folder).written_back == 0


def test_results_of_batch_run_elsewhere_are_written_back_later(running, folder):
    folder.put("a.jsonl", request_lines())
    assert event_kinds(sync_only(running, folder, write_back=True)) == ["taken", "started"]
    assert sync_only(running, folder).written_back == 0
    run_local(running, list_batches(running)[0].id)

    assert sync_only(running, folder).written_back == 1
    assert folder.names("outbox") == ["a.output.jsonl"]


def test_results_are_not_written_back_without_option(running, folder):
    folder.put("a.jsonl", request_lines())
    sync_and_run(running, folder, write_back=False)

    assert sync_and_run(running, folder).written_back == 0
    assert folder.names("outbox") == []


def test_results_of_files_with_same_stem_stay_separate(running, folder):
    folder.put("a.jsonl", request_lines(1))
    folder.put("a.jsonl.gz", gzip.compress(request_lines(2)))
    sync_and_run(running, folder)
    folder.put("a.jsonl", request_lines(3))
    sync_and_run(running, folder)

    names = folder.names("outbox")
    assert "a.output.jsonl" in names
    assert sorted(folder.read(name, "outbox").count(b"\n") for name in names) == [1, 2, 3]


def test_retry_results_replace_previous_results(folder, start_simulator, make_services):
    shaky, sound = (
        make_services(
            start_simulator(server_error=share).base_url,
            source_still_s=0,
            upstream={"max_attempts": 1},
            **folder.settings,
        )
        for share in (0.5, 0)
    )
    folder.put("a.jsonl", request_lines(20))
    sync_and_run(shaky, folder)
    before = folder.names("outbox")
    batch = retry_batch(shaky, list_batches(shaky)[0].id)
    assert sync_and_run(shaky, folder).written_back == 0
    run_local(sound, batch.id)

    assert sync_and_run(sound, folder).written_back == 1
    assert before == ["a.errors.jsonl", "a.output.jsonl"]
    assert folder.names("outbox") == ["a.output.jsonl"]
    assert folder.read("a.output.jsonl", "outbox").count(b"\n") == 20
    assert sync_and_run(sound, folder).written_back == 0


def test_batch_failing_later_validation_writes_back_errors(folder, make_services):
    first = make_services("http://localhost:9", source_still_s=0, **folder.settings)
    folder.put("a.jsonl", request_lines())
    sync_only(first, folder, write_back=True)
    stricter = make_services("http://localhost:9", max_requests=1, source_still_s=0, **folder.settings)
    run_local(stricter, list_batches(stricter)[0].id)

    assert sync_only(stricter, folder).written_back == 1
    assert [error["code"] for error in parse_errors(folder.read("a.errors.json", "outbox"))] == [
        "too_many_requests"
    ]


def test_failed_write_back_is_reported_and_repeated(start_simulator, make_services, local_folder):
    services = make_services(start_simulator().base_url, source_still_s=0, **local_folder.settings)
    local_folder.put("a.jsonl", request_lines())
    outbox = local_folder.path.parent / "outbox"
    outbox.write_text("a file where the folder should be")

    first = sync_and_run(services, local_folder)
    outbox.unlink()
    second = sync_and_run(services, local_folder)

    assert (first.written_back, first.failed, second.written_back) == (0, 1, 1)
    assert local_folder.names("outbox") == ["a.output.jsonl"]


# What cannot be


REFUSED = {
    "an endpoint": ({"endpoint": "/v1/nothing"}, "endpoint"),
    "a window": ({"completion_window": "1y"}, "completion_window"),
    "a window too long": ({"completion_window": "30d"}, "completion_window"),
    "metadata": ({"metadata": {"a": "x" * 513}}, "metadata"),
}


def test_invalid_options_are_rejected_before_reading(services, folder):
    folder.put("a.jsonl", request_lines())

    for name, (options, param) in REFUSED.items():
        with pytest.raises(InvalidInput) as raised:
            sync_only(services, folder, **options)
        assert raised.value.param == param, name
    assert folder.names() == ["a.jsonl"]


OUTSIDE = [
    ("{inbox}/../../inbox", "below an allowed root|dotted name"),
    ("{beside}/../x", "below an allowed root|dotted name"),
    ("/", "below an allowed root"),
    ("s3://other/inbox", "below an allowed root"),
    ("", "is empty"),
    ("s3://", "no bucket"),
    ("s3://*.jsonl", "no bucket"),
    ("{beside}/outbox", "watch a folder of another name"),
    ("{beside}/taken/*.jsonl", "watch a folder of another name"),
    ("{beside}", "below an allowed root"),
    ("{inbox}*/*.jsonl", "only its last part"),
    ("https://host/inbox", "give a path or an s3:// address"),
]


def test_forbidden_folder_is_rejected(services, folder):
    for template, words in OUTSIDE:
        uri = template.format(inbox=folder.uri, beside=folder.uri.rpartition("/")[0])
        with pytest.raises(InvalidInput, match=words) as raised:
            Batchline(services=services).sync(uri, start_batch=pytest.fail)
        assert raised.value.param == "uri", uri


def test_missing_local_folder_raises_not_found(make_services, local_folder):
    services = make_services("http://localhost:9", **local_folder.settings)

    with pytest.raises(NotFound, match="nowhere"):
        Batchline(services=services).sync(f"{local_folder.path.parent}/nowhere", start_batch=pytest.fail)


@pytest.mark.system
def test_wrong_secret_stops_pass_without_leaking_it(s3_folder, make_services):
    settings = {**s3_folder.settings, "s3_secret_access_key": f"{SECRET}x"}
    services = make_services("http://localhost:9", **settings)

    with pytest.raises(BatchlineError, match="check the access key") as raised:
        sync_only(services, s3_folder)
    assert SECRET not in str(raised.value)


def test_storage_failure_stops_pass(services, folder, monkeypatch):
    def fails(*_: object) -> None:
        raise StorageFault("the disk is full")

    folder.put("a.jsonl", request_lines())
    folder.put("b.jsonl", request_lines())
    monkeypatch.setattr(services.store, "writer", fails)

    with pytest.raises(StorageFault, match="the disk is full"):
        sync_only(services, folder)

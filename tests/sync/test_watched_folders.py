"""Watched folders: names of every kind, what a look costs, and servers that know fewer conditions."""

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.forwarding_proxy import ForwardingProxy, Handler, forwarding_proxy
from helpers.storage_servers import S3Server
from helpers.watched_folders import (
    BAD,
    S3Folder,
    event_kinds,
    list_batches,
    read_inputs,
    request_lines,
    sync_and_run,
    sync_only,
)
from hypothesis import given
from hypothesis import strategies as st

from batchline.engine.services import Services
from batchline.models.settings import load_settings
from batchline.models.sync import SyncEvent
from batchline.sync import s3_folder as s3_folder_module
from batchline.sync.folder import JSONL_SUFFIXES, WatchedFolder, jsonl_suffix, short_stem
from batchline.sync.select import open_watched_folder

# Names

NAMES = [
    "a b.jsonl",
    "Größe ☃ 文.jsonl",
    "e\u0301.jsonl",
    "a..b.jsonl",
    "x?#%2F&+=.jsonl",
    "'\"<>|;$(id)`.jsonl",
    "new\nline.jsonl",
    "\u202egnp.jsonl",
    "\x01.jsonl",
    "-rf.jsonl",
    "*.jsonl",
    "[a].jsonl",
    "~.jsonl",
    "A.JSONL",
    "x.jsonl.gz",
    f"{'n' * 200}.jsonl",
    f"{'文' * 66}.jsonl",
]


DISK_ONLY = ["b\\..\\..\\c.jsonl", f"{'n' * 249}.jsonl", f"{'文' * 83}.jsonl"]
"""The S3 server here takes no such names."""


def test_sync_handles_file_of_any_name(folder, start_simulator, make_services):
    services = make_services(start_simulator().base_url, source_still_s=0, **folder.settings)
    for name in NAMES if isinstance(folder, S3Folder) else [*NAMES, *DISK_ONLY]:
        good, bad = (gzip.compress(text) if name.endswith("gz") else text for text in (request_lines(), BAD))
        before = {place: folder.names(place) for place in ("taken", "outbox", "quarantine")}

        folder.put(name, good)
        first = sync_and_run(services, folder, after="move")
        folder.put(name, bad)
        second = sync_and_run(services, folder, after="move")

        taken, out, refused = (added(folder.names(place), before[place]) for place in before)
        assert event_kinds(first) == ["taken", "moved", "started", "written_back"], ascii(name)
        assert event_kinds(second) == ["quarantined"], ascii(name)
        assert read_inputs(services)[-1] == request_lines(), ascii(name)
        assert folder.names() == [], ascii(name)
        assert [folder.read(each, "taken") for each in taken] == [good], ascii(name)
        assert len(out) == 1, ascii(name)
        assert [each.endswith(".errors.json") for each in refused] == [False, True], ascii(name)
        assert all("\n" not in str(event) for event in first.events), ascii(name)


def added(now: list[str], before: list[str]) -> list[str]:
    """Return the new names."""
    return [each for each in now if each not in before]


@pytest.mark.parametrize("folder", ["local"], indirect=True)
def test_file_name_without_utf8_is_reported_and_left(services, folder):
    folder.put("\udcff.jsonl", request_lines())
    folder.put("a.jsonl", request_lines())

    summary = sync_only(services, folder)

    assert [event.kind for event in summary.events] == ["taken", "unreadable", "started"]
    assert summary.model_dump_json()


@pytest.mark.parametrize("folder", ["local"], indirect=True)
def test_linked_folder_is_same_source(services, folder):
    folder.put("a.jsonl", request_lines())
    (folder.path.parent / "link").symlink_to("inbox")
    sync_only(services, folder)
    folder.uri = str(folder.path.parent / "link")

    assert sync_only(services, folder).unchanged == 1


@pytest.mark.parametrize("folder", ["local"], indirect=True)
def test_results_outside_roots_by_link_are_rejected(services, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder.path.parent / "outbox").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Exception, match="not below an allowed root"):
        sync_only(services, folder)


some_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=250)


@given(name=some_names, ending=st.sampled_from(["", *JSONL_SUFFIXES, ".JSONL", ".jsonl.GZ"]))
def test_stem_of_any_name_is_valid_file_name(name, ending):
    stem = short_stem(name + ending)

    assert jsonl_suffix(name + ending).lower() in {"", *JSONL_SUFFIXES}
    assert stem
    assert "/" not in stem
    assert len(f"{stem}.{'0' * 12}.jsonl.zst.errors.json".encode()) <= 255
    assert len(f"{stem}.{'0' * 12}.output.jsonl".encode()) <= 255


@given(st.lists(some_names, min_size=2, max_size=2, unique=True))
def test_truncated_names_stay_distinct(names):
    one, other = (short_stem(f"{name}.jsonl") for name in names)

    assert one != other


def test_event_text_is_single_line_for_any_name():
    event = SyncEvent(kind="taken", file="/in/a\nb\x1b[31m\u202e.jsonl", batch_id="batch-1")

    assert str(event) == "taken /in/a b [31m .jsonl as batch-1"


# What a look costs


@pytest.fixture
def counted(s3_folder: S3Folder, s3_server: S3Server, make_services: Callable[..., Services]) -> Iterator[Any]:
    """Services that count their requests to S3."""
    with forwarding_proxy(s3_server.url) as server:
        settings = {**s3_folder.settings, "s3_endpoint_url": server.url}
        yield make_services("http://localhost:9", source_still_s=0, **settings), server


def is_list(request: str) -> bool:
    return "list-type=2" in request


@pytest.mark.system
def test_listing_of_many_files_takes_one_request(counted, s3_folder):
    services, server = counted
    for number in range(50):
        s3_folder.put(f"{number:04}.jsonl", request_lines(1, f"File {number}"))
    server.seen.clear()

    first = sync_only(services, s3_folder)
    assert (first.taken, len([*filter(is_list, server.seen)])) == (50, 1)

    server.seen.clear()
    again = sync_only(services, s3_folder)
    assert (again.unchanged, len(server.seen)) == (50, 1)


@pytest.mark.system
def test_listing_skips_subfolders_and_other_names(counted, s3_folder):
    services, server = counted
    for number in range(1_100):
        s3_folder.put(f"below/{number:04}.jsonl", b"x")
    s3_folder.put("day-1.jsonl", request_lines())
    s3_folder.put("week-1.jsonl", request_lines())
    server.seen.clear()
    s3_folder.uri += "/day-*.jsonl"

    assert sync_only(services, s3_folder).found == 1
    assert len([*filter(is_list, server.seen)]) == 1


# Servers that know fewer conditions


def opened(folder: S3Folder, server: ForwardingProxy | None = None) -> WatchedFolder:
    changes = {"s3_endpoint_url": server.url} if server else {}
    inbox, _ = open_watched_folder(folder.uri, load_settings(**{**folder.settings, **changes}))
    return inbox


@pytest.mark.system
def test_object_replaced_before_deletion_is_kept(s3_folder, monkeypatch):
    inbox = opened(s3_folder)
    s3_folder.put("a.jsonl", b"old")
    [file] = inbox.list_files("")
    info = inbox._store.info

    def late(key: str) -> object:
        found = info(key)
        s3_folder.put("a.jsonl", b"new")
        return found

    monkeypatch.setattr(inbox._store, "info", late)

    assert not inbox.delete(file)
    assert s3_folder.read("a.jsonl") == b"new"


@pytest.mark.system
@pytest.mark.parametrize("status", [501, 204], ids=["refuses the condition", "passes over the condition"])
def test_deletion_without_server_conditions_checks_version_first(status, s3_folder, s3_server):
    def rule(handler: Handler) -> bool:
        if handler.command != "DELETE" or "if-match" not in handler.headers:
            return False
        if status == 204:
            s3_folder.remove("a.jsonl")
        code = b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>"
        handler.send(status, [("content-type", "application/xml")], code if status == 501 else b"")
        return True

    with forwarding_proxy(s3_server.url, rule) as server:
        inbox = opened(s3_folder, server)
        s3_folder.put("a.jsonl", b"old")
        [file] = inbox.list_files("")
        s3_folder.put("a.jsonl", b"new")
        assert not inbox.delete(file)
        assert s3_folder.read("a.jsonl") == b"new"

        [file] = inbox.list_files("")
        assert inbox.delete(file)
        assert s3_folder.names() == []


@pytest.mark.system
@pytest.mark.parametrize("changes", [False, True])
def test_large_object_is_moved_in_parts(changes, s3_folder, monkeypatch):
    monkeypatch.setattr(s3_folder_module, "MAX_COPY_BYTES", 2**20)
    monkeypatch.setattr(s3_folder_module, "COPY_PART_BYTES", 5 * 2**20)
    data = bytes(range(256)) * 45_000
    inbox = opened(s3_folder)
    s3_folder.put("a.jsonl", data)
    [file] = inbox.list_files("")
    if changes:
        s3_folder.put("a.jsonl", b"new")

    assert inbox.move_to_sibling(file, "taken", "a.jsonl") is not changes
    assert s3_folder.names("taken") == ([] if changes else ["a.jsonl"])
    assert s3_folder.names() == (["a.jsonl"] if changes else [])
    assert changes or s3_folder.read("a.jsonl", "taken") == data
    bucket, _, prefix = s3_folder.path.rpartition("/")[0].partition("/")
    assert not s3_folder.client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads")


@pytest.fixture(scope="module")
def versioned(s3_server: S3Server) -> str:
    """A bucket that keeps versions."""
    client = s3_server.client()
    client.call_s3("create_bucket", Bucket="versioned")
    client.call_s3("put_bucket_versioning", Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    return "versioned"


@pytest.mark.system
def test_deleted_object_in_versioned_bucket_stays_as_older_version(versioned, s3_server, make_services):
    folder = S3Folder(s3_server, f"{versioned}/top/inbox")
    services = make_services("http://localhost:9", source_still_s=0, **folder.settings)
    for count in (1, 2):
        folder.put("a.jsonl", request_lines(count))
    sync_only(services, folder, after="delete")

    assert read_inputs(services) == [request_lines(2)]
    assert folder.names() == []
    found = folder.client.call_s3("list_object_versions", Bucket=versioned, Prefix="top/inbox/")
    assert len(found["Versions"]) == 2
    assert sync_only(services, folder).found == 0


@pytest.mark.system
def test_bucket_root_can_be_watched(versioned, s3_server, make_services):
    folder = S3Folder(s3_server, versioned)
    folder.client.pipe_file(f"{versioned}/a.jsonl", request_lines())
    services = make_services("http://localhost:9", **{**folder.settings, "source_roots": (f"s3://{versioned}",)})

    assert event_kinds(sync_only(services, folder, after="move")) == ["taken", "moved", "started"]
    assert sync_only(services, folder).found == 0
    assert folder.client.cat_file(f"{versioned}/taken/a.jsonl") == request_lines()
    assert len(list_batches(services)) == 1

"""Local object store: full disks, folders without permission, URLs."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.concurrency import in_threads
from helpers.unprivileged_user import as_nobody

from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.settings import load_settings
from batchline.storage.objects.local import LocalObjectStore
from batchline.storage.objects.select import open_objects
from batchline.storage.objects.store import ObjectStore

MIB = 2**20


def names_below(root: Path) -> list[str]:
    """Every file below that directory, unfinished ones too."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# Addresses


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_directory_url_variants_are_accepted(form: str, tmp_path: Path) -> None:
    store = open_objects(load_settings(storage_url=form.format(tmp_path / "objects")))
    store.put("a/b", b"text")

    assert (tmp_path / "objects/a/b").read_bytes() == b"text"
    assert store.uri("a/b") == str(tmp_path / "objects/a/b")


def test_relative_directory_is_resolved_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_objects(load_settings(storage_url="objects"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("key", b"text")

    assert (tmp_path / "objects/key").exists()


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "https://host/path", "S3://bucket"])
def test_unknown_url_scheme_is_rejected(url: str) -> None:
    with pytest.raises(InvalidInput, match="give a directory or s3://bucket/prefix") as raised:
        open_objects(load_settings(storage_url=url))
    assert raised.value.param == "storage_url"


def test_opening_store_creates_no_directory(tmp_path: Path) -> None:
    open_objects(load_settings(storage_url=str(tmp_path / "objects"))).list_objects("")

    assert not (tmp_path / "objects").exists()


def test_unfinished_objects_are_not_listed(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)

    with store.writer("key") as file:
        file.write(b"x" * 2 * MIB)
        assert store.list_objects("") == []
        assert len(names_below(tmp_path)) == 1


def test_concurrent_folder_deletion_does_not_break_writers(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)

    def come_and_go(number: int) -> None:
        for turn in range(300):  # few threads and many turns: what matters is the moment when the folder is empty
            key = f"folder/below/{number}-{turn}"
            assert store.put_if_absent(key, b"1") is True
            store.put(key, b"2")
            store.delete([key])

    assert in_threads(3, come_and_go) == [None] * 3
    assert [*tmp_path.iterdir()] == []


# A place that takes no more


WRITES: dict[str, Callable[[ObjectStore], object]] = {
    "put": lambda store: store.put("key", b"x" * 4 * MIB),
    "put in a new folder": lambda store: store.put("folder/key", b"x" * 4 * MIB),
    "put_if_absent": lambda store: store.put_if_absent("fresh", b"x" * 4 * MIB),
    "concat": lambda store: store.concat(["half"] * 4, "key"),
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs"]
    try:
        mounted = subprocess.run(["mount", *options, place], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("write", WRITES)
def test_full_disk_raises_fault_and_changes_nothing(write: str, small_disk: Path) -> None:
    store = LocalObjectStore(small_disk)
    store.put("key", b"old")
    store.put("half", b"x" * MIB)

    with pytest.raises(StorageFault, match="the disk is full"):
        WRITES[write](store)

    assert names_below(small_disk) == ["half", "key"]
    assert store.read("key") == b"old"


def test_write_succeeds_after_disk_has_space_again(small_disk: Path) -> None:
    store = LocalObjectStore(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * 2 * MIB)
    with pytest.raises(StorageFault):
        store.put("key", b"x" * 2 * MIB)
    (small_disk / "ballast").unlink()

    store.put("key", b"x" * 2 * MIB)

    assert store.info("key").size_bytes == 2 * MIB


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process may write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", WRITES)
def test_file_size_limit_raises_fault_and_changes_nothing(write: str, tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "objects")
    store.put("key", b"old")
    store.put("half", b"x" * MIB)

    with files_limited_to(2 * MIB), pytest.raises(StorageFault, match="File too large"):
        WRITES[write](store)

    assert names_below(tmp_path / "objects") == ["half", "key"]
    assert store.read("key") == b"old"


@pytest.mark.parametrize("write", ["put in a new folder", "put_if_absent", "concat"])
def test_file_in_place_of_root_folder_raises_fault(write: str, tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("no folder")

    with pytest.raises(StorageFault):
        WRITES[write](LocalObjectStore(tmp_path / "objects"))


# A place that is closed to us


CLOSED: dict[str, Callable[[ObjectStore], object]] = {
    "info": lambda store: store.info("closed/key"),
    "exists": lambda store: store.exists("closed/key"),
    "read": lambda store: store.read("closed/key"),
    "stream": lambda store: [*store.stream("closed/key")],
    "put": lambda store: store.put("closed/key", b"new"),
    "put_if_absent": lambda store: store.put_if_absent("closed/new", b"new"),
    "concat": lambda store: store.concat(["closed/key"], "target"),
    "find": lambda store: store.list_objects("closed"),
    "find from above": lambda store: store.list_objects(""),
    "delete": lambda store: store.delete(["closed/key"]),
}


@pytest.mark.parametrize("work", CLOSED)
def test_folder_without_permission_raises_fault(work: str, tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "objects")
    store.put("closed/key", b"old")
    (tmp_path / "objects/closed").chmod(0)

    try:
        with as_nobody(), pytest.raises(StorageFault, match="access is refused"):
            CLOSED[work](store)
    finally:
        (tmp_path / "objects/closed").chmod(0o700)

    assert store.read("closed/key") == b"old"


@pytest.mark.parametrize("write", ["put", "put_if_absent", "concat", "copy"])
def test_new_folders_and_directory_entries_are_fsynced(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjectStore(tmp_path / "objects")
    store.put("old", b"text")
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    writes = {
        "put": lambda: store.put("new/folder/key", b"text"),
        "put_if_absent": lambda: store.put_if_absent("new/folder/key", b"text"),
        "concat": lambda: store.concat(["old", "old"], "new/folder/key"),
        "copy": lambda: store.copy("old", "new/folder/key"),
    }
    writes[write]()

    root = tmp_path / "objects"
    assert {str(root), str(root / "new"), str(root / "new" / "folder")} <= set(synced)
    assert synced[-1] == str(root / "new" / "folder")


def test_objects_and_folders_are_private_to_the_owner(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        LocalObjectStore(tmp_path / "objects").put("folder/key", b"text")
    finally:
        os.umask(umask)

    modes = [path.stat().st_mode & 0o777 for path in sorted((tmp_path / "objects").rglob("*"))]
    assert (modes, (tmp_path / "objects").stat().st_mode & 0o777) == ([0o700, 0o600], 0o700)

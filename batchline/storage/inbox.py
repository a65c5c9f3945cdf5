"""Folders that files are picked up from: what lies there, and what is done to one version only.

The folders for results, for what was taken and for what does not validate are *beside* the watched one: its
sisters, or below it where it is the top of a bucket.
"""

import fnmatch
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import msgspec

from batchline.models.errors import InvalidInput, SourceFault, StorageFault
from batchline.models.settings import Settings
from batchline.storage.reading import Readable
from batchline.storage.sources import check_s3, checked_path

ENDINGS: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
OUTBOX, TAKEN, QUARANTINE = BESIDE = ("outbox", "taken", "quarantine")
STEM_BYTES: Final = 180
"""So much of a name is kept in those that are made from it, whose ends must fit in a file system's 255."""


class InboxFile(msgspec.Struct, frozen=True):
    """A file as it was listed. `changed_at`, in Unix seconds, only where files do not appear whole."""

    name: str
    size_bytes: int
    version: str
    changed_at: float | None = None


class Inbox(ABC):
    """A watched folder. Whatever fails there is a `SourceFault`, and a file that is gone `NotFound`."""

    uri: str
    """The folder's address without a slash at its end, the same however it was written."""

    beside: str
    """The address of the folder that `outbox` and the others are in."""

    @abstractmethod
    def files(self, pattern: str) -> Iterator[InboxFile]:
        """The files whose names match the pattern, in the order of their names; hidden ones are left out."""

    @abstractmethod
    def opened(self, file: InboxFile) -> AbstractContextManager[Readable]:
        """Read that version; raises `Conflict`, at the latest when the block ends, where there is another."""

    @abstractmethod
    def free_name(self, file: InboxFile, folder: str, names: Iterable[str]) -> str:
        """The first of those names in the folder beside that no other file has; the last in any case."""

    @abstractmethod
    def move(self, file: InboxFile, folder: str, name: str) -> bool:
        """Move that version to the folder beside; false, and nothing is moved, where it is not there any more."""

    @abstractmethod
    def delete(self, file: InboxFile) -> bool:
        """Delete that version; false where it is not there any more."""

    @abstractmethod
    def write(self, folder: str, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file into the folder beside, whole or not at all, over one of that name."""

    @abstractmethod
    def drop(self, folder: str, name: str) -> None:
        """Delete a file in the folder beside, if it is there."""

    def uri_of(self, name: str) -> str:
        """The address of a file in the folder."""
        return f"{self.uri}/{name}"

    def place_of(self, folder: str, name: str) -> str:
        """The address of a file in the folder beside."""
        return f"{self.beside}/{folder}/{name}"


def open_inbox(uri: str, settings: Settings) -> tuple[Inbox, str]:
    """The watched folder and the pattern of the names in it; an empty pattern stands for every JSONL file.

    Raises `InvalidInput` where the folder, or those beside it, are below no allowed root.
    """
    if not uri.strip():
        raise InvalidInput("uri is empty; name the folder to watch, such as s3://bucket/inbox/", param="uri")
    folder, pattern = _parts(uri)
    if not folder.startswith("s3://"):
        from batchline.storage.inbox_local import LocalInbox  # noqa: PLC0415 - beside its alternative

        path = checked_path(folder, settings, param="uri")
        for name in BESIDE:
            checked_path(str(path.parent / name), settings, param="uri")
        _check_name(path.name)
        return LocalInbox(path), pattern
    from batchline.storage.inbox_s3 import S3Inbox  # noqa: PLC0415 - half a second that a local folder spares

    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidInput(f"uri is {uri!r}; it names no bucket: s3://bucket/inbox/", param="uri")
    check_s3(f"{folder}/x", settings, param="uri")
    inbox = S3Inbox(bucket, prefix, settings)
    for name in BESIDE:
        check_s3(inbox.place_of(name, "x"), settings, param="uri")
    _check_name(prefix.rpartition("/")[2])
    return inbox, pattern


def _parts(uri: str) -> tuple[str, str]:
    """Folder and pattern."""
    scheme = "s3://" if uri.startswith("s3://") else ""
    place = uri.removeprefix(scheme)
    folder, slash, last = place.rpartition("/")
    if "*" in folder:
        raise InvalidInput(f"uri is {uri!r}; only its last part may have a '*'", param="uri")
    if set(last).isdisjoint("*?[") and not last.lower().endswith(ENDINGS):
        folder, last = place.rstrip("/"), ""
    nothing = "" if scheme else slash or "."
    return scheme + (folder or nothing), last


def _check_name(folder: str) -> None:
    if folder in BESIDE:
        raise InvalidInput(
            f"uri names a folder {folder!r}, which files are put into; watch one of another name", param="uri"
        )


def matches(name: str, pattern: str) -> bool:
    """Whether a file of that name is to be picked up."""
    if name.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern) if pattern else name.lower().endswith(ENDINGS)


def ending_of(name: str) -> str:
    """The name's `.jsonl`, `.jsonl.gz` or `.jsonl.zst`, as it is written there; else nothing."""
    length = max((len(ending) for ending in ENDINGS if name.lower().endswith(ending)), default=0)
    return name[len(name) - length :]


def stem_of(name: str) -> str:
    """The name without that ending; a long one cut, with a digest in the place of the rest."""
    stem = name.removesuffix(ending_of(name)) or "file"
    raw = stem.encode()
    if len(raw) <= STEM_BYTES:
        return stem
    return f"{raw[:STEM_BYTES].decode(errors='ignore')}~{hashlib.sha256(raw).hexdigest()[:8]}"


@contextmanager
def source_faults() -> Iterator[None]:
    """Tell faults of the watched place from those of our own storage."""
    try:
        yield
    except SourceFault:
        raise
    except StorageFault as fault:
        raise SourceFault(str(fault)) from fault.__cause__

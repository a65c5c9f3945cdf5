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

from batchline.models.errors import SourceFault, StorageFault
from batchline.storage.objects.readers import Readable

JSONL_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
OUTBOX_FOLDER, TAKEN_FOLDER, QUARANTINE_FOLDER = SIBLING_FOLDERS = ("outbox", "taken", "quarantine")
MAX_STEM_BYTES: Final = 180
"""So much of a name is kept in those that are made from it, whose ends must fit in a file system's 255."""


class WatchedFile(msgspec.Struct, frozen=True):
    """A file as it was listed. `modified_at`, in Unix seconds, only where files do not appear whole."""

    name: str
    size_bytes: int
    version: str
    changed_at: float | None = None


class WatchedFolder(ABC):
    """A watched folder. Whatever fails there is a `SourceFault`, and a file that is gone `NotFound`."""

    uri: str
    """The folder's address without a slash at its end, the same however it was written."""

    parent_uri: str
    """The address of the folder that `outbox` and the others are in."""

    @abstractmethod
    def list_files(self, pattern: str) -> Iterator[WatchedFile]:
        """The files whose names match the pattern, in the order of their names; hidden ones are left out."""

    @abstractmethod
    def open_version(self, file: WatchedFile) -> AbstractContextManager[Readable]:
        """Read that version; raises `Conflict`, at the latest when the block ends, where there is another."""

    @abstractmethod
    def find_free_name(self, file: WatchedFile, sibling: str, names: Iterable[str]) -> str:
        """The first of those names in the folder beside that no other file has; the last in any case."""

    @abstractmethod
    def move_to_sibling(self, file: WatchedFile, sibling: str, name: str) -> bool:
        """Move that version to the folder beside; false, and nothing is moved, where it is not there any more."""

    @abstractmethod
    def delete(self, file: WatchedFile) -> bool:
        """Delete that version; false where it is not there any more."""

    @abstractmethod
    def write_to_sibling(self, sibling: str, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file into the folder beside, whole or not at all, over one of that name."""

    @abstractmethod
    def delete_from_sibling(self, sibling: str, name: str) -> None:
        """Delete a file in the folder beside, if it is there."""

    def uri_of(self, name: str) -> str:
        """The address of a file in the folder."""
        return f"{self.uri}/{name}"

    def sibling_uri(self, sibling: str, name: str) -> str:
        """The address of a file in the folder beside."""
        return f"{self.parent_uri}/{sibling}/{name}"


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether a file of that name is to be picked up."""
    if name.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern) if pattern else name.lower().endswith(JSONL_SUFFIXES)


def jsonl_suffix(name: str) -> str:
    """The name's `.jsonl`, `.jsonl.gz` or `.jsonl.zst`, as it is written there; else nothing."""
    length = max((len(suffix) for suffix in JSONL_SUFFIXES if name.lower().endswith(suffix)), default=0)
    return name[len(name) - length :]


def short_stem(name: str) -> str:
    """The name without that ending; a long one cut, with a digest in the place of the rest."""
    stem = name.removesuffix(jsonl_suffix(name)) or "file"
    encoded = stem.encode()
    if len(encoded) <= MAX_STEM_BYTES:
        return stem
    return f"{encoded[:MAX_STEM_BYTES].decode(errors='ignore')}~{hashlib.sha256(encoded).hexdigest()[:8]}"


@contextmanager
def translate_storage_faults() -> Iterator[None]:
    """Tell faults of the watched place from those of our own storage."""
    try:
        yield
    except SourceFault:
        raise
    except StorageFault as fault:
        raise SourceFault(str(fault)) from fault.__cause__

"""Defines the interface of watched folders, whose operations on a file affect the listed version only.

The sibling folders for results, picked-up files and invalid files have the same parent as the watched folder, or
are inside it if it is the root of a bucket.
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
from batchline.storage.objects.store import ObjectStore

JSONL_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
OUTBOX_FOLDER, TAKEN_FOLDER, QUARANTINE_FOLDER = SIBLING_FOLDERS = ("outbox", "taken", "quarantine")
MAX_STEM_BYTES: Final = 180
"""Bytes of a file's name kept in derived names, which with their suffixes must fit in 255 bytes."""


class WatchedFile(msgspec.Struct, frozen=True):
    """A listed file. `changed_at`, in Unix seconds, is None if files appear only when complete."""

    name: str
    size_bytes: int
    version: str
    changed_at: float | None = None


class WatchedFolder(ABC):
    """A watched folder. Its failures raise `SourceFault`, and a missing file `NotFound`."""

    uri: str
    """The folder's normalized address, without a trailing slash."""

    parent_uri: str
    """The address of the parent of the sibling folders."""

    _store: ObjectStore
    """The objects below that parent."""

    @abstractmethod
    def list_files(self, pattern: str) -> Iterator[WatchedFile]:
        """Yield the files whose names match the pattern, sorted by name, without hidden ones."""

    @abstractmethod
    def open_version(self, file: WatchedFile) -> AbstractContextManager[Readable]:
        """Open the listed version; raises `Conflict`, at the latest when the block ends, if it has changed."""

    def find_free_name(self, file: WatchedFile, sibling: str, names: Iterable[str]) -> str:
        """Return the first of the names that no other file has in the sibling folder, else the last name."""
        name = ""
        for name in names:
            if self.is_free(sibling, name, file):
                break
        return name

    @abstractmethod
    def is_free(self, sibling: str, name: str, file: WatchedFile) -> bool:
        """Return True if the sibling folder has no file of the name, or the listed version of the file."""

    @abstractmethod
    def move_to_sibling(self, file: WatchedFile, sibling: str, name: str) -> bool:
        """Move the listed version to the sibling folder; return False without moving if the file has changed."""

    @abstractmethod
    def delete(self, file: WatchedFile) -> bool:
        """Delete the listed version; return False if the file has changed or is gone."""

    def write_to_sibling(self, sibling: str, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file to the sibling folder atomically, replacing an existing one."""
        with translate_storage_faults(), self._store.writer(f"{sibling}/{name}") as file:
            for block in blocks:
                file.write(block)

    @abstractmethod
    def delete_from_sibling(self, sibling: str, name: str) -> None:
        """Delete a file in the sibling folder, if it exists."""

    def uri_of(self, name: str) -> str:
        """Return the address of a file in the folder."""
        return f"{self.uri}/{name}"

    def sibling_uri(self, sibling: str, name: str) -> str:
        """Return the address of a file in the sibling folder."""
        return f"{self.parent_uri}/{sibling}/{name}"


def matches_pattern(name: str, pattern: str) -> bool:
    """Return True if a file of this name is to be picked up; an empty pattern matches all JSONL files."""
    if name.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern) if pattern else name.lower().endswith(JSONL_SUFFIXES)


def jsonl_suffix(name: str) -> str:
    """Return the name's `.jsonl`, `.jsonl.gz` or `.jsonl.zst` suffix in its own case, or an empty string."""
    length = max((len(suffix) for suffix in JSONL_SUFFIXES if name.lower().endswith(suffix)), default=0)
    return name[len(name) - length :]


def short_stem(name: str) -> str:
    """Return the name without its JSONL suffix; a long name is truncated and ends with a digest."""
    stem = name.removesuffix(jsonl_suffix(name)) or "file"
    encoded = stem.encode()
    if len(encoded) <= MAX_STEM_BYTES:
        return stem
    return f"{encoded[:MAX_STEM_BYTES].decode(errors='ignore')}~{hashlib.sha256(encoded).hexdigest()[:8]}"


@contextmanager
def translate_storage_faults() -> Iterator[None]:
    """Raise storage faults of the watched folder as `SourceFault`."""
    try:
        yield
    except SourceFault:
        raise
    except StorageFault as fault:
        raise SourceFault(str(fault)) from fault.__cause__

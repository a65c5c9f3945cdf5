"""Interface of an object store.

A written object appears completely or not at all. A missing key raises `NotFound`, any failure of the storage
itself `StorageFault`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

from batchline.models.errors import InvalidInput, NotFound
from batchline.storage.objects.disk import TEMPORARY_PREFIX

STREAM_BLOCK_BYTES: Final = 2**20


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object's size and a tag that changes with its content."""

    key: str
    size_bytes: int
    version: str


class ObjectWriter(Protocol):
    """Takes the bytes of an object that is being written."""

    def write(self, data: bytes) -> None:
        """Append the bytes; raises `StorageFault`."""


class ObjectStore(ABC):
    """Objects below one root. Keys are relative paths with `/`; all methods may be called from any thread."""

    root: str

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Return the object's size and version; raises `NotFound`."""

    @abstractmethod
    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end` (exclusive); raises `NotFound`, or `StorageFault` if they are fewer."""

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Write an object in blocks; it appears when the context ends, unless that raises."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless its key exists; return True if it was written."""

    @abstractmethod
    def concat(self, keys: Sequence[str], target: str) -> int:
        """Write the concatenation of the objects to `target`, and return its size in bytes."""

    @abstractmethod
    def copy(self, key: str, target: str) -> None:
        """Copy the object to `target` atomically; raises `NotFound`."""

    @abstractmethod
    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object below that directory-like prefix, grouped by folder, in no order of keys."""

    @abstractmethod
    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        """Return the names, for `abort_upload`, of unfinished writes that are older than `older_than_s`.

        Only those below the folders of files and batches: other programs may use the rest of the storage.
        """

    @abstractmethod
    def abort_upload(self, upload: str) -> None:
        """Delete an unfinished write that `incomplete_uploads` returned."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; missing ones are ignored."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return the object's path or address, for people and other programs."""

    def list_objects(self, prefix: str) -> list[ObjectInfo]:
        """Return every object below that directory-like prefix, ordered by key."""
        return sorted(self.walk(prefix), key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        """Return True if the object exists."""
        try:
            self.info(key)
        except NotFound:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        with self.writer(key) as file:
            file.write(data)

    def stream(
        self, key: str, start: int = 0, end: int | None = None, block_bytes: int = STREAM_BLOCK_BYTES
    ) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in blocks; raises as `read` does."""
        stop = self.info(key).size_bytes if end is None else end
        for offset in range(start, stop, block_bytes):
            yield self.read(key, offset, min(stop, offset + block_bytes))


def validate_key(key: str) -> str:
    """Return the key; raises `InvalidInput` if it could leave the root or names a temporary file."""
    parts = key.split("/")
    if any(part in {"", ".", ".."} or part.startswith(TEMPORARY_PREFIX) or "\0" in part for part in parts):
        raise InvalidInput(
            f"{key!r} is not a key: no empty, '.', '..' or temporary names are allowed", param="key"
        )
    return key

"""Objects by key: what a store can do, and the local directory that is one.

A writer's object appears whole or not at all. Every fault of the place itself is a `StorageFault`, a key that is
not there `NotFound`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

from batchline.models.errors import InvalidInput, NotFound
from batchline.storage.objects.disk import (
    TEMPORARY_PREFIX,
)

STREAM_BLOCK_BYTES: Final = 2**20


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object's size and a tag that changes with its content."""

    key: str
    size_bytes: int
    version: str


class ObjectWriter(Protocol):
    """Takes the bytes of an object that is being written."""

    def write(self, data: bytes) -> None:
        """Append those bytes; raises `StorageFault`."""


class ObjectStore(ABC):
    """Objects below one root. Keys are relative paths with `/`; all methods may be called from any thread."""

    root: str

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Size and version; raises `NotFound`."""

    @abstractmethod
    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive); raises `NotFound`, or `StorageFault` where there are fewer."""

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Write an object piece by piece: there when the block ends, not there when it raises."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless its key is taken; whether it was written."""

    @abstractmethod
    def concat(self, keys: Sequence[str], target: str) -> int:
        """Write the objects one after another as `target`; its size in bytes."""

    @abstractmethod
    def copy(self, key: str, target: str) -> None:
        """Give `target` the object's content, in one step for a reader; raises `NotFound`."""

    @abstractmethod
    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below that directory-like prefix, those of one folder together, as they are found."""

    @abstractmethod
    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        """Return the names, for `discard`, of objects that our dead writers left unfinished and began so long ago.

        Only below the folders of files and batches: the rest of the place may be used by other programs.
        """

    @abstractmethod
    def abort_upload(self, upload: str) -> None:
        """Delete what `unfinished` has named."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete those objects; ones that are not there are fine."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Where the object is, for people and other programs."""

    def list_objects(self, prefix: str) -> list[ObjectInfo]:
        """Every object below that directory-like prefix, by key."""
        return sorted(self.walk(prefix), key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
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
        """Bytes `start` to `end` (exclusive) in blocks; raises as `read` does."""
        stop = self.info(key).size_bytes if end is None else end
        for offset in range(start, stop, block_bytes):
            yield self.read(key, offset, min(stop, offset + block_bytes))


def validate_key(key: str) -> str:
    """The key, if it stays below the root; raises `InvalidInput` otherwise."""
    parts = key.split("/")
    if any(part in {"", ".", ".."} or part.startswith(TEMPORARY_PREFIX) or "\0" in part for part in parts):
        raise InvalidInput(
            f"{key!r} is not a key: no empty, '.', '..' or temporary names are allowed", param="key"
        )
    return key

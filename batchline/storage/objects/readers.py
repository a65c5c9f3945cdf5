"""Readers of stored objects: as a seekable file, or by ranges with read-ahead."""

import io
from typing import Final, Protocol

from batchline.models.errors import StorageFault
from batchline.storage.objects.store import ObjectStore

READ_AHEAD_BYTES: Final = 2**20


class Readable(Protocol):
    """Anything with `read(size) -> bytes`."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, empty at the end."""


class StoredFile(io.RawIOBase):
    """A seekable, read-only file on an object, of the size that the object had when it was opened."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._size = store.info(key).size_bytes
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset, and return it from the start of the file."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, or all remaining ones; raises as `ObjectStore.read` does."""
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._store.read(self._key, self._position, end)
        self._position += len(data)
        return data


class RangeReader:
    """Reads ranges of an object, best in ascending order; each request reads ahead."""

    def __init__(self, store: ObjectStore, key: str, *, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        self._store = store
        self._key = key
        self.size_bytes = store.info(key).size_bytes
        self._read_ahead_bytes = read_ahead_bytes
        self._buffer_start = 0
        self._buffer = b""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive); raises `StorageFault` if the object is shorter."""
        if end > self.size_bytes:
            raise StorageFault(f"{self._store.uri(self._key)} has {self.size_bytes} bytes; {end} were expected")
        if not self._buffer_start <= start <= end <= self._buffer_start + len(self._buffer):
            self._buffer_start = start
            self._buffer = self._store.read(
                self._key, start, max(end, min(self.size_bytes, start + self._read_ahead_bytes))
            )
        return self._buffer[start - self._buffer_start : end - self._buffer_start]

"""Ways to read: from whatever an input comes from; a stored object as a seekable file, or in ascending ranges."""

import io
from typing import Final, Protocol

from batchline.models.errors import StorageFault
from batchline.storage.objects.store import ObjectStore

READ_AHEAD_BYTES: Final = 2**20


class Readable(Protocol):
    """Anything with `read(size) -> bytes`."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class StoredFile(io.RawIOBase):
    """An object as a file to read and seek in, of the size that it had when it was opened."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._size = store.info(key).size_bytes
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another place, and return it."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes from here, fewer at the end; raises as the store's `read` does."""
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._store.read(self._key, self._position, end)
        self._position += len(data)
        return data


class RangeReader:
    """Ranges of an object, mostly in ascending order; a larger piece is read at once."""

    def __init__(self, store: ObjectStore, key: str, *, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        self._store = store
        self._key = key
        self.size_bytes = store.info(key).size_bytes
        self._read_ahead_bytes = read_ahead_bytes
        self._buffer_start = 0
        self._buffer = b""

    def read(self, start: int, end: int) -> bytes:
        """Those bytes; raises `StorageFault` where the object is shorter."""
        if end > self.size_bytes:
            raise StorageFault(f"{self._store.uri(self._key)} has {self.size_bytes} bytes; {end} were expected")
        if not self._buffer_start <= start <= end <= self._buffer_start + len(self._buffer):
            self._buffer_start = start
            self._buffer = self._store.read(
                self._key, start, max(end, min(self.size_bytes, start + self._read_ahead_bytes))
            )
        return self._buffer[start - self._buffer_start : end - self._buffer_start]

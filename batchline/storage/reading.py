"""Ways to read: from whatever an input comes from; a stored object as a seekable file, or in ascending ranges."""

import io
from typing import Final, Protocol

from batchline.models.errors import StorageFault
from batchline.storage.objects import ObjectStore

AHEAD_BYTES: Final = 2**20


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
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another place, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes from here, fewer at the end; raises as the store's `read` does."""
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        data = self._store.read(self._key, self._at, end)
        self._at += len(data)
        return data


class RangeReader:
    """Ranges of an object, mostly in ascending order; a larger piece is read at once."""

    def __init__(self, store: ObjectStore, key: str, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._store = store
        self._key = key
        self.size_bytes = store.info(key).size_bytes
        self._ahead_bytes = ahead_bytes
        self._start = 0
        self._held = b""

    def read(self, start: int, end: int) -> bytes:
        """Those bytes; raises `StorageFault` where the object is shorter."""
        if end > self.size_bytes:
            raise StorageFault(f"{self._store.uri(self._key)} has {self.size_bytes} bytes; {end} were expected")
        if not self._start <= start <= end <= self._start + len(self._held):
            self._start = start
            self._held = self._store.read(
                self._key, start, max(end, min(self.size_bytes, start + self._ahead_bytes))
            )
        return self._held[start - self._start : end - self._start]

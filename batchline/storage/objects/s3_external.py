"""Reads input files from other S3 buckets."""

import io
from typing import IO, Any, Final

import s3fs

from batchline.models.settings import Settings
from batchline.storage.objects.s3_client import create_filesystem, open_for_reading, translate_s3_errors

EXTERNAL_BUFFER_BYTES: Final = 2**20


class ExternalObject(io.RawIOBase):
    """The current version of an object in another bucket; if it is replaced, reading raises `StorageFault`."""

    def __init__(self, filesystem: s3fs.S3FileSystem, uri: str) -> None:
        super().__init__()
        self._uri = uri
        with translate_s3_errors(uri, is_lookup=True):
            self._file = open_for_reading(filesystem, uri.removeprefix("s3://"), cache_type="readahead")
        self.version = str(self._file.details.get("ETag", "")).strip('"')

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read into the buffer, and return the number of bytes; 0 at the end."""
        with translate_s3_errors(self._uri, is_lookup=True):
            return int(self._file.readinto(buffer))


def open_external(uri: str, settings: Settings) -> IO[bytes]:
    """Open an object of another bucket as a file that reads in large blocks."""
    return io.BufferedReader(ExternalObject(create_filesystem(settings), uri), EXTERNAL_BUFFER_BYTES)

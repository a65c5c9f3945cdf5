"""A folder of a bucket that files are picked up from. A version is an ETag.

Relied on: a read with `If-Match` and a copy with `x-amz-copy-source-if-match` give the version of that ETag, or
fail with 412. A deletion with `If-Match`, which Amazon and SeaweedFS check and others pass over, comes right
behind a look at the ETag: with those others an object that is put between the two is lost.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from batchline.models.errors import Conflict, NotFound, StorageFault
from batchline.models.settings import Settings
from batchline.storage.inbox import Inbox, InboxFile, matches, source_faults
from batchline.storage.objects import ObjectInfo
from batchline.storage.reading import Readable
from batchline.storage.s3 import FAILURES, FOREIGN_BYTES, ForeignFile, S3Objects, code_of

COPY_BYTES: Final = 5 * 2**30
"""The largest object that S3 copies in one request."""

PIECE_BYTES: Final = 2**30
CHANGED: Final = frozenset({"412", "PreconditionFailed", "ConditionalRequestConflict"})
"""S3's codes for an object that is not, or not any more, the version that was asked for."""


class _Versions(S3Objects):
    """Objects of which only a certain version is read, copied and deleted."""

    def listed(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        """The objects directly in the folder whose names start so."""
        top = "".join(f"{part}/" for part in (self._prefix, folder) if part)
        return self._entries(f"{top}{start}", Delimiter="/")

    def open_now(self, key: str) -> ForeignFile:
        """The version that is there now, to read."""
        return ForeignFile(self._fs, self.uri(key))

    def copy_version(self, info: ObjectInfo, target: str) -> bool:
        """Copy the object on the server; false where it is not that version."""
        call, where = self._fs.call_s3, {"Bucket": self._bucket, "Key": self._object_key(target)}
        source: dict[str, Any] = {
            "CopySource": {"Bucket": self._bucket, "Key": self._object_key(info.key)},
            "CopySourceIfMatch": f'"{info.version}"',
        }
        with _changes() as changes, self._faults(info.key, looks=True):
            if info.size_bytes <= COPY_BYTES:
                call("copy_object", **where, **source)
            else:
                self._copy_pieces(info.size_bytes, where, source)
        return not changes

    def _copy_pieces(self, size: int, where: dict[str, str], source: dict[str, Any]) -> None:
        call = self._fs.call_s3
        upload = {**where, "UploadId": call("create_multipart_upload", **where)["UploadId"]}
        try:
            parts = []
            for number, at in enumerate(range(0, size, PIECE_BYTES), start=1):
                piece = f"bytes={at}-{min(size, at + PIECE_BYTES) - 1}"
                copied = call("upload_part_copy", **upload, **source, PartNumber=number, CopySourceRange=piece)
                parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
            call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(*FAILURES):
                call("abort_multipart_upload", **upload)
            raise

    def delete_version(self, info: ObjectInfo) -> bool:
        """Delete the object; false where it is not that version."""
        where = {"Bucket": self._bucket, "Key": self._object_key(info.key)}
        with _changes() as changes:
            if self.info(info.key).version != info.version:
                return False
            try:
                with self._faults(info.key, looks=True):
                    self._fs.call_s3("delete_object", **where, IfMatch=f'"{info.version}"')
            except StorageFault as fault:
                if code_of(fault.__cause__) != "NotImplemented":
                    raise
                with self._faults(info.key):
                    self._fs.call_s3("delete_object", **where)
        return not changes


class S3Inbox(Inbox):
    """A folder of a bucket; what lies in folders below it is left alone."""

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        above, _, self._folder = prefix.rpartition("/")
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.beside = f"s3://{bucket}/{above}".rstrip("/")
        with source_faults():
            self._store = _Versions(self.beside, settings)

    def files(self, pattern: str) -> Iterator[InboxFile]:
        """The objects, by one request a thousand of those whose names start as the pattern does."""
        start = pattern[: next((at for at, sign in enumerate(pattern) if sign in "*?["), len(pattern))]
        top = f"{self._folder}/" if self._folder else ""
        with source_faults():
            for info in self._store.listed(self._folder, start):
                name = info.key.removeprefix(top)
                if name and matches(name, pattern):
                    yield InboxFile(name, info.size_bytes, info.version)

    @contextmanager
    def opened(self, file: InboxFile) -> Iterator[Readable]:
        """Read the object; each request names the version."""
        info = self._info(file)
        with source_faults():
            raw = self._store.open_now(info.key)
        with raw:
            if raw.version != file.version:
                raise _changed(self.uri_of(file.name))
            yield _Reader(io.BufferedReader(raw, FOREIGN_BYTES), self.uri_of(file.name))

    def free_name(self, file: InboxFile, folder: str, names: Iterable[str]) -> str:
        """The first of those names that no other object has there; the last in any case."""
        name = ""
        for name in names:
            try:
                with source_faults():
                    found = self._store.info(f"{folder}/{name}")
            except NotFound:
                return name
            if (found.size_bytes, found.version) == (file.size_bytes, file.version):
                return name
        return name

    def move(self, file: InboxFile, folder: str, name: str) -> bool:
        """Copy that version, then delete it; what is put there between the two stays."""
        with source_faults():
            if not self._store.copy_version(self._info(file), f"{folder}/{name}"):
                return False
        self.delete(file)
        return True

    def delete(self, file: InboxFile) -> bool:
        """Delete that version; in a bucket that keeps versions it stays there as one of the earlier."""
        with source_faults():
            return self._store.delete_version(self._info(file))

    def write(self, folder: str, name: str, blocks: Iterable[bytes]) -> None:
        """Write an object, which is there when it is whole."""
        with source_faults(), self._store.writer(f"{folder}/{name}") as file:
            for block in blocks:
                file.write(block)

    def drop(self, folder: str, name: str) -> None:
        """Delete that object, if it is there."""
        with source_faults():
            self._store.delete([f"{folder}/{name}"])

    def _info(self, file: InboxFile) -> ObjectInfo:
        key = f"{self._folder}/{file.name}" if self._folder else file.name
        return ObjectInfo(key, file.size_bytes, file.version)


class _Reader:
    def __init__(self, file: io.BufferedReader, uri: str) -> None:
        self._file = file
        self._uri = uri

    def read(self, size: int, /) -> bytes:
        try:
            with source_faults():
                return self._file.read(size)
        except StorageFault as fault:
            if code_of(fault.__cause__) in CHANGED:
                raise _changed(self._uri) from fault
            raise


def _changed(uri: str) -> Conflict:
    return Conflict(f"{uri} has changed since it was listed")


@contextmanager
def _changes() -> Iterator[list[str]]:
    """Note in the list what says that the object is gone, or is another version."""
    found: list[str] = []
    try:
        yield found
    except NotFound as error:
        found.append(str(error))
    except StorageFault as fault:
        if code_of(fault.__cause__) not in CHANGED:
            raise
        found.append(str(fault))

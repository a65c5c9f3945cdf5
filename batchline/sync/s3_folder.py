"""Implements watched folders in S3 buckets. A version is an ETag.

Reads with `If-Match` and copies with `x-amz-copy-source-if-match` must use the version of the ETag or fail with
412. Deletes with `If-Match` are checked by Amazon and SeaweedFS but ignored by other servers, so the ETag is read
just before; on those servers an object that is put in between is lost.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from batchline.models.errors import Conflict, NotFound, StorageFault
from batchline.models.settings import Settings
from batchline.storage.objects.readers import Readable
from batchline.storage.objects.s3 import S3ObjectStore
from batchline.storage.objects.s3_client import S3_ERRORS, s3_error_code
from batchline.storage.objects.s3_external import EXTERNAL_BUFFER_BYTES, ExternalObject
from batchline.storage.objects.store import ObjectInfo
from batchline.sync.folder import WatchedFile, WatchedFolder, matches_pattern, translate_storage_faults

MAX_COPY_BYTES: Final = 5 * 2**30
"""Maximum size of an object that S3 copies in one request."""

COPY_PART_BYTES: Final = 2**30
CHANGED_CODES: Final = frozenset({"412", "PreconditionFailed", "ConditionalRequestConflict"})
"""S3 error codes if the object is not the requested version."""


class _VersionedObjects(S3ObjectStore):
    """An object store that copies and deletes an object only in a given version."""

    def list_folder(self, folder: str, name_prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects directly in the folder whose names start with `name_prefix`."""
        folder_prefix = "".join(f"{part}/" for part in (self._prefix, folder) if part)
        return self._list_objects(f"{folder_prefix}{name_prefix}", Delimiter="/")

    def open_current(self, key: str) -> ExternalObject:
        """Open the current version for reading."""
        return ExternalObject(self._filesystem, self.uri(key))

    def copy_version(self, info: ObjectInfo, target: str) -> bool:
        """Copy the object on the server; return False if it is another version or gone."""
        call_s3 = self._filesystem.call_s3
        target_object = {"Bucket": self._bucket, "Key": self._object_key(target)}
        source: dict[str, Any] = {
            "CopySource": {"Bucket": self._bucket, "Key": self._object_key(info.key)},
            "CopySourceIfMatch": f'"{info.version}"',
        }
        with _collect_changes() as changes, self._translate_errors(info.key, is_lookup=True):
            if info.size_bytes <= MAX_COPY_BYTES:
                call_s3("copy_object", **target_object, **source)
            else:
                self._copy_in_parts(info.size_bytes, target_object, source)
        return not changes

    def _copy_in_parts(self, size: int, target_object: dict[str, str], source: dict[str, Any]) -> None:
        call_s3 = self._filesystem.call_s3
        upload = {**target_object, "UploadId": call_s3("create_multipart_upload", **target_object)["UploadId"]}
        try:
            parts = []
            for number, offset in enumerate(range(0, size, COPY_PART_BYTES), start=1):
                byte_range = f"bytes={offset}-{min(size, offset + COPY_PART_BYTES) - 1}"
                response = call_s3(
                    "upload_part_copy", **upload, **source, PartNumber=number, CopySourceRange=byte_range
                )
                parts.append({"PartNumber": number, "ETag": response["CopyPartResult"]["ETag"]})
            call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except BaseException:
            # The parts of an upload that is not aborted are kept, and billed, without being listed.
            with suppress(*S3_ERRORS):
                call_s3("abort_multipart_upload", **upload)
            raise

    def delete_version(self, info: ObjectInfo) -> bool:
        """Delete the object; return False if it is another version or gone."""
        target_object = {"Bucket": self._bucket, "Key": self._object_key(info.key)}
        with _collect_changes() as changes:
            if self.info(info.key).version != info.version:
                return False
            try:
                with self._translate_errors(info.key, is_lookup=True):
                    self._filesystem.call_s3("delete_object", **target_object, IfMatch=f'"{info.version}"')
            except StorageFault as fault:
                # Some servers refuse conditional deletes; the ETag was compared above.
                if s3_error_code(fault.__cause__) != "NotImplemented":
                    raise
                with self._translate_errors(info.key):
                    self._filesystem.call_s3("delete_object", **target_object)
        return not changes


class S3WatchedFolder(WatchedFolder):
    """A folder of a bucket, without its subfolders."""

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        parent_prefix, _, self._folder = prefix.rpartition("/")
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.parent_uri = f"s3://{bucket}/{parent_prefix}".rstrip("/")
        self._store: _VersionedObjects
        with translate_storage_faults():
            self._store = _VersionedObjects(self.parent_uri, settings)

    def list_files(self, pattern: str) -> Iterator[WatchedFile]:
        """Yield the objects; lists only names with the pattern's literal prefix, a thousand per request."""
        name_prefix = pattern[
            : next((index for index, character in enumerate(pattern) if character in "*?["), len(pattern))
        ]
        folder_prefix = f"{self._folder}/" if self._folder else ""
        with translate_storage_faults():
            for info in self._store.list_folder(self._folder, name_prefix):
                name = info.key.removeprefix(folder_prefix)
                if name and matches_pattern(name, pattern):
                    yield WatchedFile(name, info.size_bytes, info.version)

    @contextmanager
    def open_version(self, file: WatchedFile) -> Iterator[Readable]:
        """Open the object; each request names the version."""
        info = self._object_info(file)
        with translate_storage_faults():
            object_file = self._store.open_current(info.key)
        with object_file:
            if object_file.version != file.version:
                raise _changed_error(self.uri_of(file.name))
            yield _S3Reader(io.BufferedReader(object_file, EXTERNAL_BUFFER_BYTES), self.uri_of(file.name))

    def is_free(self, sibling: str, name: str, file: WatchedFile) -> bool:
        """Return True if the folder has no object of the name, or the listed version of the object."""
        try:
            with translate_storage_faults():
                existing = self._store.info(f"{sibling}/{name}")
        except NotFound:
            return True
        # The same version: an earlier pass was killed between the copy and the delete.
        return (existing.size_bytes, existing.version) == (file.size_bytes, file.version)

    def move_to_sibling(self, file: WatchedFile, sibling: str, name: str) -> bool:
        """Copy the listed version, then delete it; an object that is put in between stays."""
        with translate_storage_faults():
            if not self._store.copy_version(self._object_info(file), f"{sibling}/{name}"):
                return False
        self.delete(file)
        return True

    def delete(self, file: WatchedFile) -> bool:
        """Delete the listed version; a bucket with versioning keeps it as a previous version."""
        with translate_storage_faults():
            return self._store.delete_version(self._object_info(file))

    def delete_from_sibling(self, sibling: str, name: str) -> None:
        """Delete the object, if it exists."""
        with translate_storage_faults():
            self._store.delete([f"{sibling}/{name}"])

    def _object_info(self, file: WatchedFile) -> ObjectInfo:
        key = f"{self._folder}/{file.name}" if self._folder else file.name
        return ObjectInfo(key, file.size_bytes, file.version)


class _S3Reader:
    def __init__(self, file: io.BufferedReader, uri: str) -> None:
        self._file = file
        self._uri = uri

    def read(self, size: int, /) -> bytes:
        try:
            with translate_storage_faults():
                return self._file.read(size)
        except StorageFault as fault:
            if s3_error_code(fault.__cause__) in CHANGED_CODES:
                raise _changed_error(self._uri) from fault
            raise


def _changed_error(uri: str) -> Conflict:
    return Conflict(f"{uri} has changed since it was listed")


@contextmanager
def _collect_changes() -> Iterator[list[str]]:
    """Suppress errors that mean that the object is gone or another version, and yield their messages."""
    changes: list[str] = []
    try:
        yield changes
    except NotFound as error:
        changes.append(str(error))
    except StorageFault as fault:
        if s3_error_code(fault.__cause__) not in CHANGED_CODES:
            raise
        changes.append(str(fault))

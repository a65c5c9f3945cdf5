"""The object store in an S3 bucket: range requests to read, multipart uploads to write."""

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Final

from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.settings import Settings
from batchline.storage.objects import layout
from batchline.storage.objects.s3_client import (
    RANGE_BYTES,
    S3_ERRORS,
    create_filesystem,
    open_for_reading,
    prefetch,
    s3_error_code,
    translate_s3_errors,
)
from batchline.storage.objects.store import ObjectInfo, ObjectStore, ObjectWriter, validate_key

BLOCK_BYTES: Final = 16 * 2**20
MIN_PART_BYTES: Final = 5 * 2**20
"""S3's minimum size of the parts of a multipart upload, except the last."""

PREFETCH_REQUESTS: Final = 4
MAX_KEYS_PER_DELETE: Final = 1_000
RANGE_NOT_SATISFIABLE_CODES: Final = frozenset({"416", "InvalidRange"})


class S3ObjectStore(ObjectStore):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._root_path = url.removeprefix("s3://").rstrip("/")
        self.root = f"s3://{self._root_path}"
        self._bucket, _, self._prefix = self._root_path.partition("/")
        if not self._bucket:
            raise InvalidInput(
                f"storage_url is {url!r}; it has no bucket: write s3://bucket/prefix", param="storage_url"
            )
        self._filesystem = create_filesystem(settings)

    def _path_of(self, key: str) -> str:
        return f"{self._root_path}/{validate_key(key)}"

    def _object_key(self, key: str) -> str:
        return self._path_of(key).partition("/")[2]

    def info(self, key: str) -> ObjectInfo:
        """Return size and ETag; raises `NotFound`."""
        with self._translate_errors(key, is_lookup=True):
            head = self._filesystem.call_s3("head_object", Bucket=self._bucket, Key=self._object_key(key))
        return ObjectInfo(key, int(head["ContentLength"]), str(head.get("ETag", "")).strip('"'))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end` (exclusive), read in one request."""
        if end is not None and end <= start:
            self.info(key)
            return b""
        try:
            with self._translate_errors(key, is_lookup=True):
                # Concurrent ranges would cost a HEAD request, and could mix two versions of the object.
                data = bytes(
                    self._filesystem.cat_file(self._path_of(key), start=start or None, end=end, max_concurrency=1)
                )
        except StorageFault as fault:
            if s3_error_code(fault.__cause__) not in RANGE_NOT_SATISFIABLE_CODES:
                raise
            data = b""  # the range is beyond the end; raised below unless nothing was expected
        return self._require_length(key, start, end, data)

    def stream(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        block_bytes: int = RANGE_BYTES,  # noqa: ARG002 - one request per small block is too slow
    ) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in large ranges, with the next one prefetched.

        All are of the current version of the object; raises `StorageFault` if it is replaced meanwhile.
        """
        with self._translate_errors(key, is_lookup=True):
            file = open_for_reading(self._filesystem, self._path_of(key), cache_type="none")
        stop = file.size if end is None else end

        def fetch(offset: int) -> bytes:
            range_end = min(stop, offset + RANGE_BYTES)
            with self._translate_errors(key):
                file.seek(min(offset, file.size))
                data = bytes(file.read(range_end - offset))
            return self._require_length(key, offset, range_end, data)

        yield from prefetch([partial(fetch, offset) for offset in range(start, stop, RANGE_BYTES)], 1)

    def _require_length(self, key: str, start: int, end: int | None, data: bytes) -> bytes:
        """Return the data if it is the whole range, else raise `StorageFault`."""
        if end is not None and len(data) < end - start:
            raise StorageFault(f"{self.uri(key)} ends before byte {end}")
        return data

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        """Write an object in one request or, if large, by a multipart upload that an exception aborts."""
        with self._translate_errors(key):
            # `autocommit=False`: `close` alone must not make an incomplete object visible.
            file = self._filesystem.open(self._path_of(key), "wb", block_size=BLOCK_BYTES, autocommit=False)
        try:
            yield _S3Writer(file, self.uri(key))
            with self._translate_errors(key):
                file.close()
                file.commit()
        except BaseException:
            with suppress(*S3_ERRORS):
                file.discard()
            file.closed = True  # else the garbage collector would close it, which uploads its buffer
            raise

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in one request unless it is large."""
        if len(data) > BLOCK_BYTES:
            super().put(key, data)
            return
        with self._translate_errors(key):
            self._filesystem.pipe_file(self._path_of(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object with `If-None-Match: *`."""
        try:
            with self._translate_errors(key):
                self._filesystem.pipe_file(self._path_of(key), data, mode="create")
        except StorageFault as fault:
            cause = fault.__cause__
            # Servers reject an existing key with 412 or as an invalid argument; so check that it does exist.
            is_taken = isinstance(cause, FileExistsError) or getattr(cause, "errno", None) == errno.EINVAL
            if is_taken and self.exists(key):
                return False
            raise
        return True

    def concat(self, keys: Sequence[str], target: str) -> int:
        """Concatenate on the server if the sizes allow it, else through this machine."""
        sizes = [(key, self.info(key).size_bytes) for key in keys]
        non_empty = [(key, size) for key, size in sizes if size]
        if (
            len(non_empty) > 1
            and all(size >= MIN_PART_BYTES for _, size in non_empty[:-1])
            and self._server_side_concat(non_empty, target)
        ):
            return sum(size for _, size in non_empty)
        fetches = [
            partial(self.read, key, offset, min(size, offset + RANGE_BYTES))
            for key, size in non_empty
            for offset in range(0, size, RANGE_BYTES)
        ]
        with self.writer(target) as file:
            for data in prefetch(fetches, PREFETCH_REQUESTS):
                file.write(data)
        return sum(size for _, size in non_empty)

    def _server_side_concat(self, sizes: Sequence[tuple[str, int]], target: str) -> bool:
        """Concatenate by `UploadPartCopy`; return False if the server does not support it."""
        call_s3, destination = self._filesystem.call_s3, {"Bucket": self._bucket, "Key": self._object_key(target)}
        try:
            upload_id = call_s3("create_multipart_upload", **destination)["UploadId"]
        except S3_ERRORS:  # of any kind: the caller then copies the data itself, and reports a real failure
            return False
        try:
            copy_sources = [{"Bucket": self._bucket, "Key": self._object_key(key)} for key, _ in sizes]
            copies = [
                partial(
                    call_s3,
                    "upload_part_copy",
                    **destination,
                    UploadId=upload_id,
                    PartNumber=number,
                    CopySource=source,
                )
                for number, source in enumerate(copy_sources, start=1)
            ]
            parts = [
                {"PartNumber": number, "ETag": response["CopyPartResult"]["ETag"]}
                for number, response in enumerate(prefetch(copies, PREFETCH_REQUESTS), start=1)
            ]
            call_s3(
                "complete_multipart_upload", **destination, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except S3_ERRORS:
            # An upload that is neither completed nor aborted is stored, and paid for, until it is aborted.
            with suppress(*S3_ERRORS):
                call_s3("abort_multipart_upload", **destination, UploadId=upload_id)
            return False
        return True

    def copy(self, key: str, target: str) -> None:
        """Copy the object on the server; raises `NotFound`."""
        with self._translate_errors(key, is_lookup=True):
            self._filesystem.cp_file(self._path_of(key), self._path_of(target))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object below that prefix, listed anew each time."""
        prefix_in_bucket = self._object_key(prefix.rstrip("/")) if prefix.strip("/") else self._prefix
        yield from self._list_objects(f"{prefix_in_bucket}/" if prefix_in_bucket else "")

    def _list_objects(self, prefix: str, **options: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys in the bucket have that prefix, page by page."""
        token: dict[str, str] = {}
        while True:
            with self._translate_errors(prefix):
                page = self._filesystem.call_s3(
                    "list_objects_v2", Bucket=self._bucket, Prefix=prefix, **options, **token
                )
                has_more = page["IsTruncated"]
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(f"{self._prefix}/") if self._prefix else entry["Key"]
                yield ObjectInfo(key, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))
            if not has_more:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        """Return our multipart uploads that were started before, each as the object's key and the upload's id."""
        prefix_in_bucket = f"{self._prefix}/" if self._prefix else ""
        uploads: list[str] = []
        marker: dict[str, str] = {}
        while True:
            with self._translate_errors(""):
                page = self._filesystem.call_s3(
                    "list_multipart_uploads", Bucket=self._bucket, Prefix=prefix_in_bucket, **marker
                )
            uploads += [
                f"{upload['Key']} {upload['UploadId']}"
                for upload in page.get("Uploads", ())
                if layout.is_own_key(upload["Key"].removeprefix(prefix_in_bucket))
                and time.time() - upload["Initiated"].timestamp() >= older_than_s
            ]
            if not page.get("IsTruncated"):
                return uploads
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, upload: str) -> None:
        """Abort the multipart upload."""
        key, _, upload_id = upload.rpartition(" ")
        with self._translate_errors(key):
            self._filesystem.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload_id)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects, many in one request."""
        object_ids = [{"Key": self._object_key(key)} for key in keys]
        for start in range(0, len(object_ids), MAX_KEYS_PER_DELETE):
            page = object_ids[start : start + MAX_KEYS_PER_DELETE]
            with self._translate_errors(f"{len(page)} objects"):
                response = self._filesystem.call_s3(
                    "delete_objects", Bucket=self._bucket, Delete={"Objects": page, "Quiet": True}
                )
            # The status is 200 even if some objects were not deleted.
            if response.get("Errors"):
                first_error = response["Errors"][0]
                raise StorageFault(
                    f"s3://{self._bucket}/{first_error.get('Key')} cannot be deleted: {first_error.get('Code')}"
                )

    def uri(self, key: str) -> str:
        """Return the object's `s3://` address."""
        return f"s3://{self._path_of(key)}"

    def _translate_errors(self, key: str, *, is_lookup: bool = False) -> AbstractContextManager[None]:
        return translate_s3_errors(f"{self.root}/{key}", is_lookup=is_lookup)


class _S3Writer:
    def __init__(self, file: Any, uri: str) -> None:
        self._file = file
        self._uri = uri

    def write(self, data: bytes) -> None:
        with translate_s3_errors(self._uri):
            self._file.write(data)

"""Objects in an S3 bucket, through s3fs: explicit ranges to read, multipart uploads to write."""

import errno
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any, Final, TypeVar

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from batchline.models.errors import BatchlineError, InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectInfo, ObjectStore, ObjectWriter, validate_key

RANGE_BYTES: Final = 8 * 2**20
BLOCK_BYTES: Final = 16 * 2**20
MIN_PART_BYTES: Final = 5 * 2**20
"""S3's least size of a part of a multipart upload, but for the last."""

EXTERNAL_BUFFER_BYTES: Final = 2**20
PREFETCH_REQUESTS: Final = 4
MAX_KEYS_PER_DELETE: Final = 1_000
MAX_READ_ATTEMPTS: Final = 2
"""How often s3fs asks where a body breaks off; what fails before that botocore has tried again already."""

S3_ERRORS: Final = (
    *(OSError, TimeoutError, aiohttp.ClientError),
    *(ClientError, BotoCoreError, ResponseParserError),
    KeyError,  # an answer without what S3 puts there: a web page, say
)
NOT_FOUND_CODES: Final = frozenset({"", "404", "NoSuchKey", "NotFound"})
"""S3's codes for an object that is not there; none where s3fs has looked for itself."""

_T = TypeVar("_T")

RANGE_NOT_SATISFIABLE_CODES: Final = frozenset({"416", "InvalidRange"})


class S3ObjectStore(ObjectStore):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._root_path = url.removeprefix("s3://").rstrip("/")
        self.root = f"s3://{self._root_path}"
        self._bucket, _, self._prefix = self._root_path.partition("/")
        if not self._bucket:
            raise InvalidInput(
                f"storage_url is {url!r}; it names no bucket: s3://bucket/prefix", param="storage_url"
            )
        self._filesystem = _create_filesystem(settings)

    def _path_of(self, key: str) -> str:
        return f"{self._root_path}/{validate_key(key)}"

    def _object_key(self, key: str) -> str:
        return self._path_of(key).partition("/")[2]

    def info(self, key: str) -> ObjectInfo:
        """Size and ETag."""
        with self._translate_errors(key, is_lookup=True):
            head = self._filesystem.call_s3("head_object", Bucket=self._bucket, Key=self._object_key(key))
        return ObjectInfo(key, int(head["ContentLength"]), str(head.get("ETag", "")).strip('"'))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive), in one request."""
        if end is not None and end <= start:
            self.info(key)
            return b""
        try:
            with self._translate_errors(key, is_lookup=True):
                # More at a time would ask for the size first, and could join pieces of two versions.
                data = bytes(
                    self._filesystem.cat_file(self._path_of(key), start=start or None, end=end, max_concurrency=1)
                )
        except StorageFault as fault:
            if s3_error_code(fault.__cause__) not in RANGE_NOT_SATISFIABLE_CODES:
                raise
            data = b""
        return self._require_length(key, start, end, data)

    def stream(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        block_bytes: int = RANGE_BYTES,  # noqa: ARG002 - a request each is too dear for small blocks
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in large ranges, the next one fetched while one is used.

        All are of the version that is there now: a successor makes it a `StorageFault`.
        """
        with self._translate_errors(key, is_lookup=True):
            file = _open_for_reading(self._filesystem, self._path_of(key), cache_type="none")
        stop = file.size if end is None else end

        def fetch(offset: int) -> bytes:
            range_end = min(stop, offset + RANGE_BYTES)
            with self._translate_errors(key):
                file.seek(min(offset, file.size))
                data = bytes(file.read(range_end - offset))
            return self._require_length(key, offset, range_end, data)

        yield from _prefetch([partial(fetch, offset) for offset in range(start, stop, RANGE_BYTES)], 1)

    def _require_length(self, key: str, start: int, end: int | None, data: bytes) -> bytes:
        """The data, if that is the whole range; raises `StorageFault` otherwise."""
        if end is not None and len(data) < end - start:
            raise StorageFault(f"{self.uri(key)} ends before byte {end}, up to which it was to be read")
        return data

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        """Write an object as one put or as a multipart upload that a fault aborts."""
        with self._translate_errors(key):
            file = self._filesystem.open(self._path_of(key), "wb", block_size=BLOCK_BYTES, autocommit=False)
        try:
            yield _S3Writer(self, key, file)
            with self._translate_errors(key):
                file.close()
                file.commit()
        except BaseException:
            _abort_write(file)
            raise

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in one request where it is not large."""
        if len(data) > BLOCK_BYTES:
            super().put(key, data)
            return
        with self._translate_errors(key):
            self._filesystem.pipe_file(self._path_of(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object with `If-None-Match: *`; servers refuse a taken key with 412 or as invalid."""
        try:
            with self._translate_errors(key):
                self._filesystem.pipe_file(self._path_of(key), data, mode="create")
        except StorageFault as fault:
            cause = fault.__cause__
            is_taken = isinstance(cause, FileExistsError) or getattr(cause, "errno", None) == errno.EINVAL
            if is_taken and self.exists(key):
                return False
            raise
        return True

    def concat(self, keys: Sequence[str], target: str) -> int:
        """Join objects on the server where their sizes allow it, else by way of this machine."""
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
            for data in _prefetch(fetches, PREFETCH_REQUESTS):
                file.write(data)
        return sum(size for _, size in non_empty)

    def _server_side_concat(self, sizes: Sequence[tuple[str, int]], target: str) -> bool:
        """Join the objects by part copies; false where the server has none."""
        call_s3, destination = self._filesystem.call_s3, {"Bucket": self._bucket, "Key": self._object_key(target)}
        try:
            upload_id = call_s3("create_multipart_upload", **destination)["UploadId"]
        except S3_ERRORS:
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
                for number, response in enumerate(_prefetch(copies, PREFETCH_REQUESTS), start=1)
            ]
            call_s3(
                "complete_multipart_upload", **destination, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except S3_ERRORS:
            with suppress(*S3_ERRORS):
                call_s3("abort_multipart_upload", **destination, UploadId=upload_id)
            return False
        return True

    def copy(self, key: str, target: str) -> None:
        """Copy the object on the server."""
        with self._translate_errors(key, is_lookup=True):
            self._filesystem.cp_file(self._path_of(key), self._path_of(target))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below that prefix, asked of the server each time."""
        prefix_in_bucket = self._object_key(prefix.rstrip("/")) if prefix.strip("/") else self._prefix
        yield from self._list_objects(f"{prefix_in_bucket}/" if prefix_in_bucket else "")

    def _list_objects(self, prefix: str, **options: str) -> Iterator[ObjectInfo]:
        """The objects whose keys in the bucket start so, a page of a thousand after another."""
        token: dict[str, str] = {}
        while True:
            with self._translate_errors(prefix):
                page = self._filesystem.call_s3(
                    "list_objects_v2", Bucket=self._bucket, Prefix=prefix, **options, **token
                )
                has_more = page["IsTruncated"]
            yield from [self._to_object_info(entry) for entry in page.get("Contents", ())]
            if not has_more:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        """Our multipart uploads that were begun so long ago, each as its object's key and its id."""
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
        """Abort that multipart upload."""
        key, _, upload_id = upload.rpartition(" ")
        with self._translate_errors(key):
            self._filesystem.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload_id)

    def _to_object_info(self, entry: dict[str, Any]) -> ObjectInfo:
        key = entry["Key"].removeprefix(f"{self._prefix}/") if self._prefix else entry["Key"]
        return ObjectInfo(key, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete those objects, many in a request."""
        object_ids = [{"Key": self._object_key(key)} for key in keys]
        for start in range(0, len(object_ids), MAX_KEYS_PER_DELETE):
            page = object_ids[start : start + MAX_KEYS_PER_DELETE]
            with self._translate_errors(f"{len(page)} objects"):
                response = self._filesystem.call_s3(
                    "delete_objects", Bucket=self._bucket, Delete={"Objects": page, "Quiet": True}
                )
            if response.get("Errors"):
                first_error = response["Errors"][0]
                raise StorageFault(
                    f"s3://{self._bucket}/{first_error.get('Key')} cannot be deleted: {first_error.get('Code')}"
                )

    def uri(self, key: str) -> str:
        """The object's `s3://` address."""
        return f"s3://{self._path_of(key)}"

    @contextmanager
    def _translate_errors(self, key: str, *, is_lookup: bool = False) -> Iterator[None]:
        """Turn the errors of s3fs, botocore and the network into ours; `NotFound` is for who looks for one."""
        try:
            yield
        except S3_ERRORS as error:
            raise _to_batchline_error(error, f"{self.root}/{key}", is_lookup=is_lookup) from error


class _S3Writer:
    def __init__(self, store: S3ObjectStore, key: str, file: Any) -> None:
        self._store = store
        self._key = key
        self._file = file

    def write(self, data: bytes) -> None:
        with self._store._translate_errors(self._key):  # noqa: SLF001 - one class in two halves
            self._file.write(data)


def _abort_write(file: Any) -> None:
    """Abort the upload, as far as the server can still be reached."""
    try:
        file.discard()
    except S3_ERRORS:
        return
    finally:
        file.closed = True


def _open_for_reading(filesystem: s3fs.S3FileSystem, path: str, *, cache_type: str) -> Any:
    """The object as a file, which sends the ETag that the object has now with every range."""
    file = filesystem.open(path, "rb", block_size=RANGE_BYTES, cache_type=cache_type)
    if file.details["type"] != "file":
        raise FileNotFoundError(f"{path} is a folder")
    return file


def _prefetch(fetches: Sequence[Callable[[], _T]], depth: int) -> Iterator[_T]:
    """What each of them fetches, in order, so many ahead of what is being used."""
    if len(fetches) < 2:
        yield from (fetch() for fetch in fetches)
        return
    with ThreadPoolExecutor(max_workers=depth, thread_name_prefix="s3 read") as pool:
        pending_reads = deque(pool.submit(fetch) for fetch in fetches[:depth])
        for fetch in [*fetches[depth:], *[None] * min(depth, len(fetches))]:
            data = pending_reads.popleft().result()
            if fetch is not None:
                pending_reads.append(pool.submit(fetch))
            yield data


def _create_filesystem(settings: Settings) -> s3fs.S3FileSystem:
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    filesystem = s3fs.S3FileSystem(
        key=key.get_secret_value() if key else None,
        secret=secret.get_secret_value() if secret else None,
        endpoint_url=settings.s3_endpoint_url,
        client_kwargs={"region_name": settings.s3_region} if settings.s3_region else {},
        config_kwargs={
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 3, "mode": "standard"},
            "max_pool_connections": 64,
            # Every body is signed with its digest already, and not every server knows the newer checksums.
            "request_checksum_calculation": "when_required",
        },
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
    )
    filesystem.retries = MAX_READ_ATTEMPTS
    return filesystem


def s3_error_code(error: BaseException | None) -> str:
    """S3's own code for the error, as far as it has one."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return "" if error is None else str(error.response.get("Error", {}).get("Code", ""))


def _to_batchline_error(error: BaseException, uri: str, *, is_lookup: bool) -> BatchlineError:
    """What to raise for it."""
    if is_lookup and isinstance(error, FileNotFoundError) and s3_error_code(error) in NOT_FOUND_CODES:
        return NotFound(f"there is no object at {uri} (or no such bucket)")
    return StorageFault(f"S3 fails at {uri}: {_describe_s3_error(error)}")


def _describe_s3_error(error: BaseException) -> str:
    """What is wrong, without what may be a secret or a page of it."""
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    if s3_error_code(error) == "NoSuchBucket":
        return "there is no such bucket; make it, or correct BATCHLINE_STORAGE_URL"
    if isinstance(error, PermissionError):
        return f"access is refused ({text}); check the access key, its secret and what it may do"
    if isinstance(error, KeyError | ResponseParserError):
        return f"the answer is not one of S3's ({text}); check BATCHLINE_S3_ENDPOINT_URL"
    return text


class ExternalObject(io.RawIOBase):
    """Another bucket's object as it is now, whose faults are ours; a successor is one of them."""

    def __init__(self, filesystem: s3fs.S3FileSystem, uri: str) -> None:
        super().__init__()
        self._uri = uri
        with self._translate_errors():
            self._file = _open_for_reading(filesystem, uri.removeprefix("s3://"), cache_type="readahead")
        self.version = str(self._file.details.get("ETag", "")).strip('"')

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as there are bytes, and return their number."""
        with self._translate_errors():
            return int(self._file.readinto(buffer))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except S3_ERRORS as error:
            raise _to_batchline_error(error, self._uri, is_lookup=True) from error


def open_external(uri: str, settings: Settings) -> IO[bytes]:
    """Another bucket's object as a file to read, in large blocks."""
    return io.BufferedReader(ExternalObject(_create_filesystem(settings), uri), EXTERNAL_BUFFER_BYTES)

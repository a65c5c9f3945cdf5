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
from batchline.storage import layout
from batchline.storage.objects import ObjectInfo, ObjectStore, ObjectWriter, checked_key

RANGE_BYTES: Final = 8 * 2**20
BLOCK_BYTES: Final = 16 * 2**20
LEAST_PART_BYTES: Final = 5 * 2**20
"""S3's least size of a part of a multipart upload, but for the last."""

FOREIGN_BYTES: Final = 2**20
AHEAD: Final = 4
DELETED_AT_ONCE: Final = 1_000
TRIES: Final = 2
"""How often s3fs asks where a body breaks off; what fails before that botocore has tried again already."""

FAILURES: Final = (
    *(OSError, TimeoutError, aiohttp.ClientError),
    *(ClientError, BotoCoreError, ResponseParserError),
    KeyError,  # an answer without what S3 puts there: a web page, say
)
ABSENT: Final = frozenset({"", "404", "NoSuchKey", "NotFound"})
"""S3's codes for an object that is not there; none where s3fs has looked for itself."""

_T = TypeVar("_T")

BEHIND_THE_END: Final = frozenset({"416", "InvalidRange"})


class S3Objects(ObjectStore):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._top = url.removeprefix("s3://").rstrip("/")
        self.root = f"s3://{self._top}"
        self._bucket, _, self._prefix = self._top.partition("/")
        if not self._bucket:
            raise InvalidInput(
                f"storage_url is {url!r}; it names no bucket: s3://bucket/prefix", param="storage_url"
            )
        self._fs = _filesystem(settings)

    def _path(self, key: str) -> str:
        return f"{self._top}/{checked_key(key)}"

    def _object_key(self, key: str) -> str:
        return self._path(key).partition("/")[2]

    def info(self, key: str) -> ObjectInfo:
        """Size and ETag."""
        with self._faults(key, looks=True):
            found = self._fs.call_s3("head_object", Bucket=self._bucket, Key=self._object_key(key))
        return ObjectInfo(key, int(found["ContentLength"]), str(found.get("ETag", "")).strip('"'))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive), in one request."""
        if end is not None and end <= start:
            self.info(key)
            return b""
        try:
            with self._faults(key, looks=True):
                # More at a time would ask for the size first, and could join pieces of two versions.
                data = bytes(self._fs.cat_file(self._path(key), start=start or None, end=end, max_concurrency=1))
        except StorageFault as fault:
            if code_of(fault.__cause__) not in BEHIND_THE_END:
                raise
            data = b""
        return self._whole(key, start, end, data)

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
        with self._faults(key, looks=True):
            file = _opened(self._fs, self._path(key), cache_type="none")
        stop = file.size if end is None else end

        def fetch(at: int) -> bytes:
            until = min(stop, at + RANGE_BYTES)
            with self._faults(key):
                file.seek(min(at, file.size))
                data = bytes(file.read(until - at))
            return self._whole(key, at, until, data)

        yield from _ahead([partial(fetch, at) for at in range(start, stop, RANGE_BYTES)], 1)

    def _whole(self, key: str, start: int, end: int | None, data: bytes) -> bytes:
        """The data, if that is the whole range; raises `StorageFault` otherwise."""
        if end is not None and len(data) < end - start:
            raise StorageFault(f"{self.uri(key)} ends before byte {end}, up to which it was to be read")
        return data

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        """Write an object as one put or as a multipart upload that a fault aborts."""
        with self._faults(key):
            file = self._fs.open(self._path(key), "wb", block_size=BLOCK_BYTES, autocommit=False)
        try:
            yield _S3Writer(self, key, file)
            with self._faults(key):
                file.close()
                file.commit()
        except BaseException:
            _discard(file)
            raise

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in one request where it is not large."""
        if len(data) > BLOCK_BYTES:
            super().put(key, data)
            return
        with self._faults(key):
            self._fs.pipe_file(self._path(key), data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object with `If-None-Match: *`; servers refuse a taken key with 412 or as invalid."""
        try:
            with self._faults(key):
                self._fs.pipe_file(self._path(key), data, mode="create")
        except StorageFault as fault:
            cause = fault.__cause__
            taken = isinstance(cause, FileExistsError) or getattr(cause, "errno", None) == errno.EINVAL
            if taken and self.exists(key):
                return False
            raise
        return True

    def concat(self, keys: Sequence[str], target: str) -> int:
        """Join objects on the server where their sizes allow it, else by way of this machine."""
        sizes = [(key, self.info(key).size_bytes) for key in keys]
        full = [(key, size) for key, size in sizes if size]
        if len(full) > 1 and all(size >= LEAST_PART_BYTES for _, size in full[:-1]) and self._copied(full, target):
            return sum(size for _, size in full)
        fetches = [
            partial(self.read, key, at, min(size, at + RANGE_BYTES))
            for key, size in full
            for at in range(0, size, RANGE_BYTES)
        ]
        with self.writer(target) as file:
            for data in _ahead(fetches, AHEAD):
                file.write(data)
        return sum(size for _, size in full)

    def _copied(self, sizes: Sequence[tuple[str, int]], target: str) -> bool:
        """Join the objects by part copies; false where the server has none."""
        call, where = self._fs.call_s3, {"Bucket": self._bucket, "Key": self._object_key(target)}
        try:
            upload = call("create_multipart_upload", **where)["UploadId"]
        except FAILURES:
            return False
        try:
            sources = [{"Bucket": self._bucket, "Key": self._object_key(key)} for key, _ in sizes]
            copies = [
                partial(call, "upload_part_copy", **where, UploadId=upload, PartNumber=number, CopySource=source)
                for number, source in enumerate(sources, start=1)
            ]
            parts = [
                {"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]}
                for number, copied in enumerate(_ahead(copies, AHEAD), start=1)
            ]
            call("complete_multipart_upload", **where, UploadId=upload, MultipartUpload={"Parts": parts})
        except FAILURES:
            with suppress(*FAILURES):
                call("abort_multipart_upload", **where, UploadId=upload)
            return False
        return True

    def copy(self, key: str, target: str) -> None:
        """Copy the object on the server."""
        with self._faults(key, looks=True):
            self._fs.cp_file(self._path(key), self._path(target))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below that prefix, asked of the server each time."""
        top = self._object_key(prefix.rstrip("/")) if prefix.strip("/") else self._prefix
        yield from self._entries(f"{top}/" if top else "")

    def _entries(self, start: str, **options: str) -> Iterator[ObjectInfo]:
        """The objects whose keys in the bucket start so, a page of a thousand after another."""
        token: dict[str, str] = {}
        while True:
            with self._faults(start):
                page = self._fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=start, **options, **token)
                more = page["IsTruncated"]
            yield from [self._listed(entry) for entry in page.get("Contents", ())]
            if not more:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def unfinished(self, *, older_than_s: float) -> list[str]:
        """Our multipart uploads that were begun so long ago, each as its object's key and its id."""
        top = f"{self._prefix}/" if self._prefix else ""
        found: list[str] = []
        marker: dict[str, str] = {}
        while True:
            with self._faults(""):
                page = self._fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=top, **marker)
            found += [
                f"{upload['Key']} {upload['UploadId']}"
                for upload in page.get("Uploads", ())
                if layout.is_ours(upload["Key"].removeprefix(top))
                and time.time() - upload["Initiated"].timestamp() >= older_than_s
            ]
            if not page.get("IsTruncated"):
                return found
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def discard(self, unfinished: str) -> None:
        """Abort that multipart upload."""
        key, _, upload = unfinished.rpartition(" ")
        with self._faults(key):
            self._fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload)

    def _listed(self, entry: dict[str, Any]) -> ObjectInfo:
        key = entry["Key"].removeprefix(f"{self._prefix}/") if self._prefix else entry["Key"]
        return ObjectInfo(key, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete those objects, many in a request."""
        names = [{"Key": self._object_key(key)} for key in keys]
        for start in range(0, len(names), DELETED_AT_ONCE):
            some = names[start : start + DELETED_AT_ONCE]
            with self._faults(f"{len(some)} objects"):
                answer = self._fs.call_s3(
                    "delete_objects", Bucket=self._bucket, Delete={"Objects": some, "Quiet": True}
                )
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise StorageFault(
                    f"s3://{self._bucket}/{first.get('Key')} cannot be deleted: {first.get('Code')}"
                )

    def uri(self, key: str) -> str:
        """The object's `s3://` address."""
        return f"s3://{self._path(key)}"

    @contextmanager
    def _faults(self, key: str, *, looks: bool = False) -> Iterator[None]:
        """Turn the errors of s3fs, botocore and the network into ours; `NotFound` is for who looks for one."""
        try:
            yield
        except FAILURES as error:
            raise _fault(error, f"{self.root}/{key}", looks=looks) from error


class _S3Writer:
    def __init__(self, store: S3Objects, key: str, file: Any) -> None:
        self._store = store
        self._key = key
        self._file = file

    def write(self, data: bytes) -> None:
        with self._store._faults(self._key):  # noqa: SLF001 - one class in two halves
            self._file.write(data)


def _discard(file: Any) -> None:
    """Abort the upload, as far as the server can still be reached."""
    try:
        file.discard()
    except FAILURES:
        return
    finally:
        file.closed = True


def _opened(filesystem: s3fs.S3FileSystem, path: str, *, cache_type: str) -> Any:
    """The object as a file, which sends the ETag that the object has now with every range."""
    file = filesystem.open(path, "rb", block_size=RANGE_BYTES, cache_type=cache_type)
    if file.details["type"] != "file":
        raise FileNotFoundError(f"{path} is a folder")
    return file


def _ahead(fetches: Sequence[Callable[[], _T]], ahead: int) -> Iterator[_T]:
    """What each of them fetches, in order, so many ahead of what is being used."""
    if len(fetches) < 2:
        yield from (fetch() for fetch in fetches)
        return
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="s3 read") as pool:
        waiting = deque(pool.submit(fetch) for fetch in fetches[:ahead])
        for fetch in [*fetches[ahead:], *[None] * min(ahead, len(fetches))]:
            data = waiting.popleft().result()
            if fetch is not None:
                waiting.append(pool.submit(fetch))
            yield data


def _filesystem(settings: Settings) -> s3fs.S3FileSystem:
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
    filesystem.retries = TRIES
    return filesystem


def code_of(error: BaseException | None) -> str:
    """S3's own code for the error, as far as it has one."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return "" if error is None else str(error.response.get("Error", {}).get("Code", ""))


def _fault(error: BaseException, uri: str, *, looks: bool) -> BatchlineError:
    """What to raise for it."""
    if looks and isinstance(error, FileNotFoundError) and code_of(error) in ABSENT:
        return NotFound(f"there is no object at {uri} (or no such bucket)")
    return StorageFault(f"S3 fails at {uri}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """What is wrong, without what may be a secret or a page of it."""
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    if code_of(error) == "NoSuchBucket":
        return "there is no such bucket; make it, or correct BATCHLINE_STORAGE_URL"
    if isinstance(error, PermissionError):
        return f"access is refused ({text}); check the access key, its secret and what it may do"
    if isinstance(error, KeyError | ResponseParserError):
        return f"the answer is not one of S3's ({text}); check BATCHLINE_S3_ENDPOINT_URL"
    return text


class ForeignFile(io.RawIOBase):
    """Another bucket's object as it is now, whose faults are ours; a successor is one of them."""

    def __init__(self, filesystem: s3fs.S3FileSystem, uri: str) -> None:
        super().__init__()
        self._uri = uri
        with self._faults():
            self._file = _opened(filesystem, uri.removeprefix("s3://"), cache_type="readahead")
        self.version = str(self._file.details.get("ETag", "")).strip('"')

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as there are bytes, and return their number."""
        with self._faults():
            return int(self._file.readinto(buffer))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise _fault(error, self._uri, looks=True) from error


def open_foreign(uri: str, settings: Settings) -> IO[bytes]:
    """Another bucket's object as a file to read, in large blocks."""
    return io.BufferedReader(ForeignFile(_filesystem(settings), uri), FOREIGN_BYTES)

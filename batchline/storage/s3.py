"""Objects in an S3 bucket, through s3fs: explicit ranges to read, multipart uploads to write."""

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings
from batchline.storage.objects import ObjectInfo, ObjectStore, ObjectWriter, checked_key

RANGE_BYTES: Final = 8 * 2**20
BLOCK_BYTES: Final = 8 * 2**20
LEAST_PART_BYTES: Final = 5 * 2**20
"""S3's least size of a part of a multipart upload, but for the last."""

AHEAD: Final = 4
DELETED_AT_ONCE: Final = 1_000


class S3Objects(ObjectStore):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.root = url.rstrip("/")
        self._top = self.root.removeprefix("s3://")
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
        with self._faults(key):
            found = self._fs.call_s3("head_object", Bucket=self._bucket, Key=self._object_key(key))
        return ObjectInfo(key, int(found["ContentLength"]), str(found.get("ETag", "")).strip('"'))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive), in one request."""
        if end is not None and end <= start:
            return b""
        with self._faults(key):
            data = bytes(self._fs.cat_file(self._path(key), start=start or None, end=end))
        if end is not None and len(data) < end - start:
            raise StorageFault(f"{self.uri(key)} ends at byte {start + len(data)}; {end} were expected")
        return data

    def stream(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        block_bytes: int = RANGE_BYTES,  # noqa: ARG002 - a request each is too dear for small blocks
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in large ranges, the next one fetched while one is used."""
        stop = self.info(key).size_bytes if end is None else end
        ranges = [(key, at, min(stop, at + RANGE_BYTES)) for at in range(start, stop, RANGE_BYTES)]
        yield from self._fetched(ranges, ahead=1)

    def _fetched(self, ranges: Sequence[tuple[str, int, int]], *, ahead: int) -> Iterator[bytes]:
        """The bytes of each range in order, some fetched ahead."""
        if len(ranges) < 2:
            yield from (self.read(*each) for each in ranges)
            return
        with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="s3 read") as pool:
            waiting = deque(pool.submit(self.read, *each) for each in ranges[:ahead])
            for each in [*ranges[ahead:], *[None] * min(ahead, len(ranges))]:
                data = waiting.popleft().result()
                if each is not None:
                    waiting.append(pool.submit(self.read, *each))
                yield data

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
        ranges = [
            (key, at, min(size, at + RANGE_BYTES)) for key, size in full for at in range(0, size, RANGE_BYTES)
        ]
        with self.writer(target) as file:
            for data in self._fetched(ranges, ahead=AHEAD):
                file.write(data)
        return sum(size for _, size in full)

    def _copied(self, sizes: Sequence[tuple[str, int]], target: str) -> bool:
        """Join the objects by part copies; false where the server has none."""
        call, where = self._fs.call_s3, {"Bucket": self._bucket, "Key": self._object_key(target)}
        try:
            upload = call("create_multipart_upload", **where)["UploadId"]
        except (OSError, ClientError, BotoCoreError):
            return False
        try:
            parts = []
            for number, (key, _) in enumerate(sizes, start=1):
                source = {"Bucket": self._bucket, "Key": self._object_key(key)}
                copied = call("upload_part_copy", **where, UploadId=upload, PartNumber=number, CopySource=source)
                parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
            call("complete_multipart_upload", **where, UploadId=upload, MultipartUpload={"Parts": parts})
        except (OSError, ClientError, BotoCoreError, KeyError):
            with self._faults(target):
                call("abort_multipart_upload", **where, UploadId=upload)
            return False
        return True

    def find(self, prefix: str) -> list[ObjectInfo]:
        """Every object below that prefix, asked of the server each time."""
        top = f"{self._prefix}/{prefix}".strip("/")
        found: list[ObjectInfo] = []
        token: dict[str, str] = {}
        while True:
            with self._faults(prefix):
                page = self._fs.call_s3(
                    "list_objects_v2", Bucket=self._bucket, Prefix=f"{top}/" if top else "", **token
                )
            found += [self._listed(entry) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda info: info.key)
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _listed(self, entry: dict[str, Any]) -> ObjectInfo:
        key = entry["Key"].removeprefix(f"{self._prefix}/") if self._prefix else entry["Key"]
        return ObjectInfo(key, int(entry["Size"]), str(entry.get("ETag", "")).strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete those objects, many in a request."""
        names = [{"Key": self._object_key(key)} for key in keys]
        for start in range(0, len(names), DELETED_AT_ONCE):
            some = names[start : start + DELETED_AT_ONCE]
            with self._faults(self.root):
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
    def _faults(self, key: str) -> Iterator[None]:
        """Turn the errors of s3fs, botocore and the network into ours."""
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"there is no object at {self.root}/{key} (or no such bucket)") from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "?"))
            if code in {"404", "NoSuchKey", "NotFound"}:
                raise NotFound(f"there is no object at {self.root}/{key}") from error
            raise StorageFault(f"S3 refuses {self.root}/{key}: {code}") from error
        except (OSError, BotoCoreError, aiohttp.ClientError, TimeoutError) as error:
            raise StorageFault(
                f"S3 fails at {self.root}/{key}: {type(error).__name__}: {_brief(error)}"
            ) from error


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
    except (OSError, ClientError, BotoCoreError, aiohttp.ClientError, TimeoutError):
        return
    finally:
        file.closed = True


def _filesystem(settings: Settings) -> s3fs.S3FileSystem:
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return s3fs.S3FileSystem(
        key=key.get_secret_value() if key else None,
        secret=secret.get_secret_value() if secret else None,
        endpoint_url=settings.s3_endpoint_url,
        client_kwargs={"region_name": settings.s3_region} if settings.s3_region else {},
        config_kwargs={
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 4, "mode": "standard"},
            "max_pool_connections": 64,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
    )


def _brief(error: BaseException) -> str:
    """The error's text without what may be a secret or a page of it."""
    return str(error).partition("\n")[0][:200]


@contextmanager
def open_foreign(uri: str, settings: Settings) -> Iterator[Any]:
    """Another bucket's object as a file to read, in large blocks."""
    path = uri.removeprefix("s3://")
    try:
        with _filesystem(settings).open(path, "rb", block_size=RANGE_BYTES, cache_type="readahead") as file:
            yield file
    except FileNotFoundError as error:
        raise NotFound(f"there is no object at {uri}") from error
    except (OSError, ClientError, BotoCoreError, aiohttp.ClientError) as error:
        raise StorageFault(f"S3 fails at {uri}: {type(error).__name__}: {_brief(error)}") from error

"""The S3 client behind s3fs: configuration, translation of errors, and prefetching in other threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from batchline.models.errors import NotFound, StorageFault
from batchline.models.settings import Settings

RANGE_BYTES: Final = 8 * 2**20
MAX_READ_ATTEMPTS: Final = 2
"""Attempts of s3fs if a body breaks off; botocore retries earlier failures itself."""

S3_ERRORS: Final = (
    *(OSError, TimeoutError, aiohttp.ClientError),
    *(ClientError, BotoCoreError, ResponseParserError),
    KeyError,  # a reply without the fields of S3, for example a web page
)
NOT_FOUND_CODES: Final = frozenset({"", "404", "NoSuchKey", "NotFound"})
"""Error codes of S3 for a missing object; empty if s3fs raised the error itself."""

_T = TypeVar("_T")


def create_filesystem(settings: Settings) -> s3fs.S3FileSystem:
    """Return a file system for the configured server and keys."""
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
            # Bodies are signed with their digest already, and not every server knows the newer checksums.
            "request_checksum_calculation": "when_required",
        },
        # No caches: other processes change the bucket.
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
    )
    filesystem.retries = MAX_READ_ATTEMPTS
    return filesystem


def open_for_reading(filesystem: s3fs.S3FileSystem, path: str, *, cache_type: str) -> Any:
    """Open the object as a file, which sends the object's current ETag with every range request."""
    file = filesystem.open(path, "rb", block_size=RANGE_BYTES, cache_type=cache_type)
    if file.details["type"] != "file":
        raise FileNotFoundError(f"{path} is a folder")
    return file


def prefetch(fetches: Sequence[Callable[[], _T]], depth: int) -> Iterator[_T]:
    """Yield the results of the calls in order, with up to `depth` calls ahead in other threads."""
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


@contextmanager
def translate_s3_errors(uri: str, *, is_lookup: bool = False) -> Iterator[None]:
    """Turn errors of s3fs, botocore and the network into ours; only a lookup raises `NotFound`."""
    try:
        yield
    except S3_ERRORS as error:
        if is_lookup and isinstance(error, FileNotFoundError) and s3_error_code(error) in NOT_FOUND_CODES:
            raise NotFound(f"there is no object at {uri} (or no such bucket)") from error
        raise StorageFault(f"S3 fails at {uri}: {_describe_s3_error(error)}") from error


def s3_error_code(error: BaseException | None) -> str:
    """Return S3's code for the error, or an empty string if it has none."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return "" if error is None else str(error.response.get("Error", {}).get("Code", ""))


def _describe_s3_error(error: BaseException) -> str:
    """Return a short description; only the first line, since some servers send a whole page."""
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    if s3_error_code(error) == "NoSuchBucket":
        return "there is no such bucket; create it, or correct BATCHLINE_STORAGE_URL"
    if isinstance(error, PermissionError):
        return f"access is refused ({text}); check the access key, its secret and its permissions"
    if isinstance(error, KeyError | ResponseParserError):
        return f"the answer is not from an S3 server ({text}); check BATCHLINE_S3_ENDPOINT_URL"
    return text

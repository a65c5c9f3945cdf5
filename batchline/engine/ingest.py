"""How files and batches come into being: an input is stored whole, then a batch is recorded for it."""

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from batchline.engine.deletion import delete_now, delete_objects
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.errors import InvalidInput, StorageFault, TooLarge
from batchline.models.ids import new_batch_id, new_file_id
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.objects import layout
from batchline.storage.objects.input_uris import open_input_uri
from batchline.storage.objects.readers import Readable
from batchline.storage.records.store import BatchRecord, FileRecord, Idempotency, OpenBatchLimit, PendingDeletion

BLOCK_BYTES = 2**20
ZSTD_BLOCK_BYTES = 2**8
"""Small, because zstd can grow thirty thousand times, and each piece is decompressed whole and held twice."""

MAX_ZSTD_WINDOW_BYTES = 2**23
"""Bytes of decompressed data that each upload may hold, as RFC 8878 (3.1.1.1.2) recommends for decoders."""

UPLOAD_TIMEOUT_S = 86_400
"""How long an upload may take; what is not recorded by then is swept away."""

COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".zst": "zstd"}


def store_input(
    services: Services,
    source: Readable,
    *,
    filename: str,
    expires_after: Callable[[], int | None] = lambda: None,
    member_id: str | None = None,
    max_bytes: int | None = None,
) -> FileRecord:
    """Store an input file, decompressed where its name ends in `.gz` or `.zst`, and return its record.

    Streams with constant memory; `expires_after` is asked when all is read. Raises `InvalidInput` for a stream
    that does not decompress, `TooLarge` for one that is longer than `max_bytes` or the settings' `max_file_bytes`;
    then nothing is stored.
    """
    record = store_content(
        services,
        source,
        filename=filename,
        expires_after=expires_after,
        member_id=member_id,
        max_bytes=max_bytes,
    )
    services.records.add_file(record)
    return record


def store_content(
    services: Services,
    source: Readable,
    *,
    filename: str,
    expires_after: Callable[[], int | None] = lambda: None,
    member_id: str | None = None,
    max_bytes: int | None = None,
) -> FileRecord:
    """Store an input file as `store_input` does, and return the record that is still to be made of it.

    Until it is made, the content is doomed.
    """
    file_id = new_file_id()
    key = layout.input_key(file_id)
    digest, size = hashlib.sha256(), 0
    with _cleanup_on_failure(services, key), services.store.writer(key) as file:
        for block in _decompressed_blocks(source, filename):
            size += len(block)
            _check_size(size, filename, services.settings, max_bytes)
            digest.update(block)
            file.write(block)
        expires_after_s = expires_after()
    now = int(time.time())
    return FileRecord(
        id=file_id,
        purpose="batch",
        filename=_safe_filename(filename),
        size_bytes=size,
        created_at=now,
        expires_at=None if expires_after_s is None else now + expires_after_s,
        sha256=digest.hexdigest(),
        key=key,
        status="processed",
        member_id=member_id,
    )


def delete_content(services: Services, record: FileRecord) -> None:
    """Delete stored content, unless a record was made of it."""
    if services.records.schedule_deletion_if_unrecorded(record.key, due_at=int(time.time())):
        delete_now(services, record.key)


@contextmanager
def _cleanup_on_failure(services: Services, key: str) -> Iterator[None]:
    """Note the object as doomed until its file is on record; a write that raises leaves neither behind."""
    deletion = PendingDeletion(prefix=key, due_at=int(time.time()) + UPLOAD_TIMEOUT_S)
    services.records.schedule_deletion(deletion)
    try:
        yield
    except BaseException:
        with suppress(StorageFault):  # then later housekeeping does
            delete_objects(services, deletion)  # the object may be there: its last answer may have been lost
        raise


def store_input_from(services: Services, uri: str, *, expires_after: int | None = None) -> FileRecord:
    """Store the input file at that URI, which must lie below one of the settings' `source_roots`."""
    with open_input_uri(uri, services.settings) as source:
        return store_input(services, source, filename=PurePosixPath(uri).name, expires_after=lambda: expires_after)


def store_input_file(services: Services, path: Path, *, expires_after: int | None = None) -> FileRecord:
    """Store the local input file at that path; raises `InvalidInput` where it cannot be read."""
    with _open_input(path) as source:
        return store_input(services, source, filename=path.name, expires_after=lambda: expires_after)


def read_input_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of the local input file at that path."""
    with _open_input(path) as source:
        yield from _decompressed_blocks(source, path.name)


def _open_input(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidInput(f"{path} cannot be read: {reason.lower()}", param="file") from error


def _check_size(size: int, filename: str, settings: Settings, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(
            f"{filename} is longer than {max_bytes} bytes (decompressed), the most that you may upload; split it",
            param="file",
        )
    if size > settings.max_file_bytes:
        raise TooLarge(
            f"{filename} is longer than {settings.max_file_bytes} bytes (decompressed), the most that a file may "
            "have; split it, or raise BATCHLINE_MAX_FILE_BYTES",
            param="file",
        )


def _safe_filename(filename: str) -> str:
    """The name of what is stored: without directories and without the suffix of a compression."""
    filename = filename.encode(errors="surrogateescape").decode(errors="replace")  # names need not be UTF-8
    name = PurePosixPath(filename.replace("\\", "/")).name
    return (
        name[: -len(_lower_suffix(name))] if _lower_suffix(name) in COMPRESSION_BY_SUFFIX else name
    ) or "input.jsonl"


def _lower_suffix(filename: str) -> str:
    return PurePosixPath(filename).suffix.lower()


def _decompressed_blocks(source: Readable, filename: str) -> Iterator[bytes]:
    compression = COMPRESSION_BY_SUFFIX.get(_lower_suffix(filename))
    if compression is None:
        yield from _read_blocks(source)
        return
    try:
        yield from (
            _read_blocks(gzip.GzipFile(fileobj=_as_binary_file(source)))
            if compression == "gzip"
            else _decompress_zstd(source)
        )
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise InvalidInput(
            f"{filename} does not decompress as {compression}: {error}; compress it anew and upload it again",
            param="file",
        ) from error


def _as_binary_file(source: Readable) -> IO[bytes]:
    return source  # type: ignore[return-value] # GzipFile calls nothing but read()


def _read_blocks(source: Readable, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    while block := source.read(block_bytes):
        yield block


def _decompress_zstd(source: Readable) -> Iterator[bytes]:
    """The content of all frames; raises `ValueError` for what is no zstd, and `EOFError` for a frame cut short.

    zstandard's own stream reader takes a frame that is cut short for a whole one.
    """
    import zstandard  # noqa: PLC0415 - only where a file is so compressed

    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    frame = None
    for block in _read_blocks(source, ZSTD_BLOCK_BYTES):
        remaining = block
        while remaining:
            frame = frame or decompressor.decompressobj()
            try:
                yield frame.decompress(remaining)
            except zstandard.ZstdError as error:
                reason = str(error)
                if "too much memory" in reason:
                    reason = f"its window is over {MAX_ZSTD_WINDOW_BYTES:,} bytes (leave out --long and --ultra)"
                raise ValueError(reason) from error
            remaining, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends before its last frame does")


def create_batch(
    services: Services,
    request: CreateBatchRequest,
    *,
    origin: BatchDwExtResponse,
    flow_run_id: str | None = None,
    batch_id: str | None = None,
    output_expires_after: int | None = None,
    member_id: str | None = None,
    open_batch_limit: OpenBatchLimit | None = None,
    idempotency: Idempotency | None = None,
) -> BatchRecord:
    """Record a new batch, `validating`; one that the flow run or the key has already made is returned instead.

    Raises `InvalidInput` for an endpoint or window that the settings do not allow, `NotFound` for an unknown
    input file, `LimitReached` where the `room` for open batches is taken up.
    """
    file = services.records.get_file(request.input_file_id)
    record = new_batch(
        services.settings,
        request,
        file,
        origin=origin,
        flow_run_id=flow_run_id,
        batch_id=batch_id,
        output_expires_after=output_expires_after,
        member_id=member_id,
    )
    return services.records.add_batch(
        record, needs_input=True, open_batch_limit=open_batch_limit, idempotency=idempotency
    )


def new_batch(
    settings: Settings,
    request: CreateBatchRequest,
    file: FileRecord,
    *,
    origin: BatchDwExtResponse,
    flow_run_id: str | None = None,
    batch_id: str | None = None,
    output_expires_after: int | None = None,
    member_id: str | None = None,
) -> BatchRecord:
    """A batch of that input file, `validating`, to be recorded; raises `InvalidInput` as `create_batch` does."""
    settings.require_endpoint(request.endpoint)
    window_s = settings.require_window_s(request.completion_window)
    if file.purpose != "batch":
        raise InvalidInput(
            f"file {file.id} is {file.purpose}; a batch takes an input file of purpose batch",
            param="input_file_id",
        )
    now = int(time.time())
    return BatchRecord(
        id=batch_id or new_batch_id(),
        status=BatchStatus.VALIDATING,
        endpoint=request.endpoint,
        input_file_id=file.id,
        input_filename=file.filename,
        completion_window=request.completion_window,
        created_at=now,
        expires_at=now + window_s,
        metadata=request.metadata,
        dwext=origin,
        flow_run_id=flow_run_id,
        # The run may die before it takes the batch, and then its death has to lead to the batch as well.
        last_flow_run_id=flow_run_id,
        output_expires_after=output_expires_after,
        member_id=member_id,
    )

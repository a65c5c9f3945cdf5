"""Creates files and batches: an input is stored completely before a batch is recorded for it."""

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from batchline.engine.deletion import delete_now, delete_objects
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.errors import InvalidInput, StorageFault, TooLarge
from batchline.models.ids import new_batch_id, new_file_id
from batchline.models.options import OnLimit
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.objects import layout
from batchline.storage.objects.input_uris import open_input_uri
from batchline.storage.objects.readers import Readable
from batchline.storage.records.store import BatchRecord, FileRecord, Idempotency, OpenBatchLimit, PendingDeletion

BLOCK_BYTES = 2**20
ZSTD_BLOCK_BYTES = 2**8
"""Read size for zstd: small, as data can expand 30,000-fold and each block's result is held twice in memory."""

MAX_ZSTD_WINDOW_BYTES = 2**23
"""Largest zstd window, in bytes of memory per upload; RFC 8878 (3.1.1.1.2) recommends this for decoders."""

UPLOAD_TIMEOUT_S = 86_400
"""Seconds that an upload may take; content not recorded by then is deleted."""

COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".zst": "zstd"}


def store_input(
    services: Services,
    source: Readable,
    *,
    filename: str,
    expires_after: Callable[[], int | None] = lambda: None,
    member_id: str | None = None,
    max_bytes: int | None = None,
    is_recorded: bool = True,
) -> FileRecord:
    """Store an input file, decompressed if its name ends in `.gz` or `.zst`, and return its record.

    Streams with constant memory; `expires_after` is called after the last read. Unless `is_recorded`, the content
    stays scheduled for deletion until the caller inserts its record. Raises `InvalidInput` if the stream cannot be
    decompressed, `TooLarge` if it is longer than `max_bytes` or the settings' `max_file_bytes`; in both cases
    nothing is stored.
    """
    file_id = new_file_id()
    key = layout.input_key(file_id)
    limit_bytes = services.settings.max_file_bytes
    limit_name = "a file may have; split it, or raise BATCHLINE_MAX_FILE_BYTES"
    if max_bytes is not None and max_bytes <= limit_bytes:
        limit_bytes, limit_name = max_bytes, "you may upload; split it"
    digest, size = hashlib.sha256(), 0
    with _cleanup_on_failure(services, key), services.store.writer(key) as file:
        for block in _decompressed_blocks(source, filename):
            size += len(block)
            if size > limit_bytes:
                raise TooLarge(
                    f"{filename} is longer than {limit_bytes} bytes (decompressed), the most that {limit_name}",
                    param="file",
                )
            digest.update(block)
            file.write(block)
        expires_after_s = expires_after()
    now = int(time.time())
    record = FileRecord(
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
    if is_recorded:
        # This cancels the deletion that is scheduled for its key.
        services.records.add_file(record)
    return record


def delete_content(services: Services, record: FileRecord) -> None:
    """Delete stored content unless a file record refers to it."""
    if services.records.schedule_deletion_if_unrecorded(record.key, due_at=int(time.time())):
        delete_now(services, record.key)


@contextmanager
def _cleanup_on_failure(services: Services, key: str) -> Iterator[None]:
    """Schedule the deletion of the object before it is written; if the block raises, delete it at once."""
    deletion = PendingDeletion(prefix=key, due_at=int(time.time()) + UPLOAD_TIMEOUT_S)
    services.records.schedule_deletion(deletion)
    try:
        yield
    except BaseException:
        with suppress(StorageFault):  # then housekeeping deletes it
            delete_objects(services, deletion)  # a write that failed may still have created the object
        raise


def store_input_from(services: Services, uri: str, *, expires_after: int | None = None) -> FileRecord:
    """Store the input file at a URI, which must lie below one of the settings' `source_roots`."""
    with open_input_uri(uri, services.settings) as source:
        return store_input(services, source, filename=PurePosixPath(uri).name, expires_after=lambda: expires_after)


def store_input_file(services: Services, path: Path, *, expires_after: int | None = None) -> FileRecord:
    """Store a local input file; raises `InvalidInput` if it cannot be read."""
    with _open_input(path) as source:
        return store_input(services, source, filename=path.name, expires_after=lambda: expires_after)


def read_input_blocks(path: Path) -> Iterator[bytes]:
    """Yield the decompressed blocks of a local input file; raises `InvalidInput`."""
    with _open_input(path) as source:
        yield from _decompressed_blocks(source, path.name)


def _open_input(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidInput(f"{path} cannot be read: {reason.lower()}", param="file") from error


def _safe_filename(filename: str) -> str:
    """Return the file name without directories and without a compression suffix."""
    # File names on disk need not be UTF-8; Python represents foreign bytes as surrogates.
    text = filename.encode(errors="surrogateescape").decode(errors="replace")
    path = PurePosixPath(text.replace("\\", "/"))
    return (path.stem if path.suffix.lower() in COMPRESSION_BY_SUFFIX else path.name) or "input.jsonl"


def _decompressed_blocks(source: Readable, filename: str) -> Iterator[bytes]:
    compression = COMPRESSION_BY_SUFFIX.get(PurePosixPath(filename).suffix.lower())
    if compression is None:
        yield from _read_blocks(source)
        return
    try:
        yield from (
            # GzipFile calls nothing but read().
            _read_blocks(gzip.GzipFile(fileobj=cast("IO[bytes]", source)))
            if compression == "gzip"
            else _decompress_zstd(source)
        )
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise InvalidInput(
            f"{filename} does not decompress as {compression}: {error}; compress it again, then upload it",
            param="file",
        ) from error


def _read_blocks(source: Readable, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    while block := source.read(block_bytes):
        yield block


def _decompress_zstd(source: Readable) -> Iterator[bytes]:
    """Yield the content of all frames; raises `ValueError` for invalid data, `EOFError` for a truncated frame."""
    import zstandard  # noqa: PLC0415 - only needed for zstd files

    # Not its stream reader, which accepts a truncated frame as a complete one.
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
        raise EOFError("its last frame is incomplete")


def create_batch(
    services: Services,
    request: CreateBatchRequest,
    *,
    origin: BatchDwExtResponse,
    flow_run_id: str | None = None,
    output_expires_after: int | None = None,
    default_on_limit: OnLimit | None = None,
    member_id: str | None = None,
    open_batch_limit: OpenBatchLimit | None = None,
    idempotency: Idempotency | None = None,
) -> BatchRecord:
    """Record a new batch as `validating`, or return the one already created by the flow run or idempotency key.

    Raises `InvalidInput` for an endpoint or window that the settings do not allow, `NotFound` for an unknown input
    file, `LimitReached` if `open_batch_limit` is reached.
    """
    file = services.records.get_file(request.input_file_id)
    record = new_batch(
        services.settings,
        request,
        file,
        origin=origin,
        flow_run_id=flow_run_id,
        output_expires_after=output_expires_after,
        default_on_limit=default_on_limit,
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
    output_expires_after: int | None = None,
    default_on_limit: OnLimit | None = None,
    member_id: str | None = None,
) -> BatchRecord:
    """Build the record of a new batch, without inserting it; raises `InvalidInput` as `create_batch` does."""
    settings.require_endpoint(request.endpoint)
    window_s = settings.require_window_s(request.completion_window)
    if file.purpose != "batch":
        raise InvalidInput(
            f"file {file.id} has purpose {file.purpose}; a batch needs an input file of purpose batch",
            param="input_file_id",
        )
    now = int(time.time())
    return BatchRecord(
        id=new_batch_id(),
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
        # The flow run may crash before it claims the batch; its crash must then still be traced to the batch.
        last_flow_run_id=flow_run_id,
        output_expires_after=output_expires_after,
        options=request.options if request.given_options else None,
        default_on_limit=default_on_limit,
        member_id=member_id,
    )

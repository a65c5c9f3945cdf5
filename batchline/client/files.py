"""Operations on stored files: upload, list, read and delete."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal
from uuid import UUID

import msgspec

from batchline.client.access import UNRESTRICTED, Access
from batchline.client.arguments import ExpiresAfter, parse_arguments, parse_lifetime_s
from batchline.client.line_ranges import FileExtent, LinePage, filter_lines, find_lines
from batchline.client.pagination import Page
from batchline.engine.deletion import delete_now
from batchline.engine.ingest import read_input_blocks, store_input, store_input_file, store_input_from
from batchline.engine.services import Services
from batchline.models.errors import InvalidInput, NotFound, StorageFault, TooLarge
from batchline.models.files import MAX_FILES_PAGE_SIZE, FileObject, FilePurpose, ListFilesQuery
from batchline.models.settings import load_settings
from batchline.steps.parts import find_finished_keys, read_part
from batchline.steps.plans import read_plan
from batchline.steps.validate_lines import Validation, validate_lines
from batchline.steps.write import read_manifest
from batchline.storage.objects import layout
from batchline.storage.objects.readers import Readable
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import FileRecord, PendingDeletion

Upload = str | Path | bytes | Readable | tuple[str, bytes | Readable]
"""A path, an `s3://` or `file://` address, bytes, a binary file object, or a name with one of the last two."""


class UploadOptions(msgspec.Struct, frozen=True):
    """The form fields that accompany an uploaded file."""

    purpose: str
    expires_after: ExpiresAfter | None = None


class Files:
    """The files in the storage of these services, created by `Batchline.files`."""

    def __init__(self, services: Services, access: Access = UNRESTRICTED) -> None:
        self._services = services
        self._access = access

    def create(
        self, *, file: Upload, purpose: FilePurpose = "batch", expires_after: ExpiresAfter | None = None
    ) -> FileObject:
        """Store an input file, decompressed if its name ends in `.gz` or `.zst`, and return it.

        `expires_after` is its minimum lifetime; without it the file is kept. Raises `InvalidInput` for a purpose
        other than `batch`, and for a file that cannot be read or is too long.
        """
        _check_purpose(purpose)
        services, expires_after_s = self._services, parse_lifetime_s(expires_after)
        if isinstance(file, str) and "://" in file:
            return store_input_from(services, file, expires_after=expires_after_s).to_object()
        if isinstance(file, str | Path):
            return store_input_file(services, Path(file), expires_after=expires_after_s).to_object()
        name, content = file if isinstance(file, tuple) else (getattr(file, "name", None), file)
        return store_input(
            services,
            io.BytesIO(content) if isinstance(content, bytes) else content,
            filename=PurePosixPath(name).name if isinstance(name, str) else "input.jsonl",
            expires_after=lambda: expires_after_s,
            member_id=self._access.member_id,
            max_bytes=self._max_upload_bytes(),
        ).to_object()

    def create_from_uri(self, uri: str) -> FileObject:
        """Store the input file at a path or URI, which must lie below one of the settings' source roots."""
        return store_input_from(self._services, uri).to_object()

    def create_streaming(
        self, content: Readable, *, filename: str, options: Callable[[], UploadOptions]
    ) -> FileObject:
        """Store an input file like `create`; `options` is called after the content has been read."""

        def expires_after_s() -> int | None:
            upload_options = options()
            _check_purpose(upload_options.purpose)
            return parse_lifetime_s(upload_options.expires_after)

        return store_input(
            self._services,
            content,
            filename=filename,
            expires_after=expires_after_s,
            member_id=self._access.member_id,
            max_bytes=self._max_upload_bytes(),
        ).to_object()

    def _max_upload_bytes(self) -> int | None:
        """Return the maximum size of the member's next upload, None if unlimited; raises `TooLarge` if 0."""
        access, max_member_bytes = self._access, self._services.settings.max_member_bytes
        if access.member_id is None or max_member_bytes is None:
            return access.max_upload_bytes
        remaining_bytes = max_member_bytes - self._services.records.total_input_bytes(access.member_id)
        if remaining_bytes <= 0:
            raise TooLarge(f"your input files use all of your {max_member_bytes:,} bytes; delete some")
        return (
            remaining_bytes if access.max_upload_bytes is None else min(remaining_bytes, access.max_upload_bytes)
        )

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = MAX_FILES_PAGE_SIZE,
        purpose: FilePurpose | None = None,
        search: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        member_id: str | UUID | None = None,
    ) -> Page[FileObject]:
        """Return a page of files, newest first unless `order` is `asc`; iterating continues with later pages.

        Raises `InvalidInput` for an invalid query, `NotFound` for an unknown cursor.
        """
        query = parse_arguments(
            ListFilesQuery, limit=limit, purpose=purpose, search=search, order=order, member_id=member_id
        )
        if after is not None and self._access.is_restricted:
            self.record(after)
        visible_member = self._access.visible_member(query.member_id)

        def fetch_page(cursor: str | None) -> Page[FileObject]:
            records, has_more = self._services.records.list_files(
                after=cursor,
                limit=query.limit,
                purpose=query.purpose,
                search=query.search,
                order=query.order,
                member_id=None if visible_member is None else str(visible_member),
            )
            return Page([record.to_object() for record in records], has_more, fetch_page)

        return fetch_page(after)

    def retrieve(self, file_id: str) -> FileObject:
        """Return the file; raises `NotFound`."""
        return self.record(file_id).to_object()

    def record(self, file_id: str) -> FileRecord:
        """Return the file's database record, including its storage key; raises `NotFound`."""
        return self._services.records.get_file(file_id, member_id=self._access.member_filter)

    def content(
        self, file_id: str, *, start: int = 0, end: int | None = None, key: str | None = None
    ) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) of the file, in blocks of about 1 MiB; raises `NotFound`.

        For a running batch, output and error files hold the results up to the first unfinished chunk. With the
        `key` of a `FileExtent`, the content measured then is read, even if a retry has replaced it.
        """
        if key is not None and end is not None:
            return self._services.store.stream(key, start, end)
        return self._read_blocks(self.record(file_id), start, end)

    def _read_blocks(self, record: FileRecord, start: int, end: int | None) -> Iterator[bytes]:
        offset = start
        while record.status == "uploaded":
            fault = None
            try:
                for block in self._read_settled(record, offset, end):
                    offset += len(block)
                    yield block
            except (NotFound, StorageFault) as error:
                fault = error
            record, previous = self._services.records.get_file(record.id), record
            if record == previous:
                if fault is not None:
                    raise fault
                return
        size_bytes = record.size_bytes
        if offset < min(size_bytes, size_bytes if end is None else end):
            yield from self._services.store.stream(
                record.key, offset, size_bytes if end is None else min(size_bytes, end)
            )

    def validate(self, file_id: str, *, endpoint: str | None = None) -> Validation:
        """Check an input file as a batch would, against `endpoint` or else the one its requests name.

        Raises `NotFound`, and `InvalidInput` for an endpoint that is not allowed.
        """
        services, record = self._services, self.record(file_id)
        with services.validation_slots:
            return validate_lines(
                lambda: services.store.stream(record.key, 0, record.size_bytes),
                batch_id="",
                input_key=record.key,
                endpoint=None if endpoint is None else services.settings.require_endpoint(endpoint),
                settings=services.settings,
                max_errors=services.settings.max_reported_errors,
            )

    def extent(self, file_id: str) -> FileExtent:
        """Return the readable size of the file; raises `NotFound`."""
        record = self.record(file_id)
        while record.status == "uploaded":
            fault, size_bytes = None, 0
            try:
                parts = list(self._list_settled_parts(record))
                size_bytes = sum(self._services.store.info(key).size_bytes for key, _ in parts)
            except (NotFound, StorageFault) as error:
                fault = error
            record, previous = self.record(file_id), record
            if record == previous:
                if fault is not None:
                    raise fault
                return FileExtent(size_bytes, is_complete=False, lines=sum(lines for _, lines in parts))
        return FileExtent(record.size_bytes, is_complete=True, lines=self._count_lines(record), key=record.key)

    def _count_lines(self, record: FileRecord) -> int | None:
        """Return the number of lines of a batch's file, or None if it must be read to count them."""
        if record.purpose == "batch":
            return None
        try:
            manifest = read_manifest(self._services.store, record.key.rpartition("/")[0] + "/")
        except NotFound:
            return None
        return manifest.failed if record.is_error_file else manifest.completed

    def lines(
        self, file_id: str, *, skip: int = 0, limit: int | None = None, search: str | None = None
    ) -> LinePage:
        """Return up to `limit` lines after the first `skip` whose custom_id contains `search`.

        For a running batch, only settled lines. The file is searched before this returns. Raises `NotFound`.
        """
        extent = self.extent(file_id)
        byte_range = find_lines(
            self.content(file_id, end=extent.size_bytes), skip=skip, limit=limit, search=search
        )
        blocks = self.content(file_id, start=byte_range.start, end=byte_range.end)
        return LinePage(filter_lines(blocks, search), byte_range.last_line, extent.is_complete)

    def _read_settled(self, record: FileRecord, start: int, end: int | None) -> Iterator[bytes]:
        store, position = self._services.store, 0
        for key, _ in self._list_settled_parts(record):
            size_bytes = store.info(key).size_bytes
            part_start, part_end = (
                max(start - position, 0),
                size_bytes if end is None else min(size_bytes, end - position),
            )
            if part_start < part_end:
                yield from store.stream(key, part_start, part_end)
            position += size_bytes

    def _list_settled_parts(self, record: FileRecord) -> Iterator[tuple[str, int]]:
        """Yield key and line count of each part of a running batch's file, up to the first open chunk."""
        store = self._services.store
        batch = self._services.records.find_batch_of_file(record.id)
        if batch is None or batch.final_prefix is not None:
            return
        finished = find_finished_keys(store, batch.id, batch.generation)
        for chunk in read_plan(store, batch).chunks if finished else ():
            if chunk.index not in finished:
                return
            part = read_part(store, finished[chunk.index])
            if record.is_error_file and part.failed:
                yield part.keys.errors, part.failed
            elif not record.is_error_file and part.completed:
                yield part.keys.output, part.completed

    def delete(self, file_id: str) -> None:
        """Delete the file; raises `NotFound`, and `Conflict` if a batch that has not ended needs it."""
        records = self._services.records
        record = self.record(file_id)
        keys = (record.key, *_list_copies(self._services.store, record))
        records.delete_file(file_id, deletions=[PendingDeletion(prefix=key, due_at=0) for key in keys])
        delete_now(self._services, *keys)


def validate_file(path: Path, *, endpoint: str | None = None) -> Validation:
    """Check a local input file without storing it, and return all of its errors; raises like `Files.validate`."""
    settings = load_settings()
    return validate_lines(
        lambda: read_input_blocks(path),
        batch_id="",
        input_key=str(path),
        endpoint=None if endpoint is None else settings.require_endpoint(endpoint),
        settings=settings,
        max_errors=None,
    )


def _check_purpose(purpose: str) -> None:
    if purpose != "batch":
        raise InvalidInput(f"purpose is {purpose!r}; only files of purpose 'batch' are uploaded", param="purpose")


def _list_copies(store: ObjectStore, record: FileRecord) -> list[str]:
    """Return the keys of a result file's copies, and for an error file those of the report pages that quote it."""
    if record.purpose == "batch":
        return []
    folder, name = PurePosixPath(record.key).parts[1], PurePosixPath(record.key).name
    names = {name, "report.html"} if record.is_error_file else {name}
    return [
        info.key
        for info in store.list_objects(layout.batch_prefix(folder))
        if PurePosixPath(info.key).name in names
    ]

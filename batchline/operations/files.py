"""Stored files: uploaded, listed, read, deleted."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal
from uuid import UUID

import msgspec

from batchline.models.errors import InvalidInput, NotFound, StorageFault, TooLarge
from batchline.models.files import MAX_FILES, FileObject, FilePurpose, ListFilesQuery
from batchline.operations.access import EVERYTHING, Access
from batchline.operations.checks import checked
from batchline.operations.expiry import ExpiresAfter, seconds_of
from batchline.operations.lines import Extent, LinesRead, find_lines, matching
from batchline.operations.pages import Page
from batchline.steps.engine import Engine
from batchline.steps.intake import store_input, store_input_file, store_input_from
from batchline.steps.parts import finished_keys, part_of
from batchline.steps.plans import read_plan
from batchline.steps.sweep import sweep_now
from batchline.steps.validate import Validation, validate_input
from batchline.steps.write import read_manifest
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.storage.reading import Readable
from batchline.storage.records import Doomed, FileRecord

Upload = str | Path | bytes | Readable | tuple[str, bytes | Readable]
"""A path, an `s3://` or `file://` address, bytes, an open binary file, or a name with one of the last two."""


class UploadOptions(msgspec.Struct, frozen=True):
    """What is said of a file that is uploaded."""

    purpose: str
    expires_after: ExpiresAfter | None = None


class Files:
    """The files of an engine's storage. Made by `Batchline.files`."""

    def __init__(self, engine: Engine, access: Access = EVERYTHING) -> None:
        self._engine = engine
        self._access = access

    def create(
        self, *, file: Upload, purpose: FilePurpose = "batch", expires_after: ExpiresAfter | None = None
    ) -> FileObject:
        """Store an input file, decompressed where its name ends in `.gz` or `.zst`, and return it.

        `expires_after` is how long it is kept at least; for ever where absent. Raises `InvalidInput`
        for a purpose other than `batch`, and for a file that cannot be read or is too long.
        """
        _check_purpose(purpose)
        return self._stored(file, seconds_of(expires_after)).to_object()

    def receive(self, content: Readable, *, filename: str, options: Callable[[], UploadOptions]) -> FileObject:
        """Store an input file as `create` does; what is said of it may come behind it, and is asked then."""

        def expires_after_s() -> int | None:
            asked = options()
            _check_purpose(asked.purpose)
            return seconds_of(asked.expires_after)

        return store_input(
            self._engine,
            content,
            filename=filename,
            expires_after=expires_after_s,
            member_id=self._access.member_id,
            max_bytes=self._room_bytes(),
        ).to_object()

    def _room_bytes(self) -> int | None:
        """The largest file that the member may upload now, None if any; raises `TooLarge` if there is no room."""
        access, most = self._access, self._engine.settings.max_member_bytes
        if access.member_id is None or most is None:
            return access.max_upload_bytes
        room = most - self._engine.records.input_bytes(access.member_id)
        if room <= 0:
            raise TooLarge(f"your input files take up all of the {most:,} bytes that you may keep; delete some")
        return room if access.max_upload_bytes is None else min(room, access.max_upload_bytes)

    def _stored(self, file: Upload, expires_after_s: int | None) -> FileRecord:
        engine, access = self._engine, self._access
        if isinstance(file, str) and "://" in file:
            return store_input_from(engine, file, expires_after=expires_after_s)
        if isinstance(file, str | Path):
            return store_input_file(engine, Path(file), expires_after=expires_after_s)
        name, content = file if isinstance(file, tuple) else (_name_of(file), file)
        return store_input(
            engine,
            io.BytesIO(content) if isinstance(content, bytes) else content,
            filename=name,
            expires_after=lambda: expires_after_s,
            member_id=access.member_id,
            max_bytes=self._room_bytes(),
        )

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = MAX_FILES,
        purpose: FilePurpose | None = None,
        search: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        member_id: str | UUID | None = None,
    ) -> Page[FileObject]:
        """A page of files, newest first; iterate over it to get those of further pages as well.

        Raises `InvalidInput` for a query that cannot be, `NotFound` for an unknown cursor.
        """
        query = checked(
            ListFilesQuery, limit=limit, purpose=purpose, search=search, order=order, member_id=member_id
        )
        if after is not None and self._access.confined:
            self.record(after)
        whose = self._access.whose(query.member_id)

        def page(cursor: str | None) -> Page[FileObject]:
            records, has_more = self._engine.records.list_files(
                after=cursor,
                limit=query.limit,
                purpose=query.purpose,
                search=query.search,
                order=query.order,
                member_id=None if whose is None else str(whose),
            )
            return Page([record.to_object() for record in records], has_more, page)

        return page(after)

    def retrieve(self, file_id: str) -> FileObject:
        """The file; raises `NotFound`."""
        return self.record(file_id).to_object()

    def record(self, file_id: str) -> FileRecord:
        """The file as it is kept, with where its content is; raises `NotFound`."""
        return self._engine.records.get_file(file_id, member_id=self._access.only)

    def content(
        self, file_id: str, *, start: int = 0, end: int | None = None, key: str | None = None
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) of the file, in blocks of about a MiB; raises `NotFound`.

        Of a batch that is running, the output and error files hold what is settled from the input's start on. With
        the `key` of an `Extent` it is the content that was measured, though a retry may have replaced it since.
        """
        if key is not None and end is not None:
            return self._engine.store.stream(key, start, end)
        return self._blocks(self.record(file_id), start, end)

    def _blocks(self, record: FileRecord, start: int, end: int | None) -> Iterator[bytes]:
        at = start
        while record.status == "uploaded":
            try:
                for block in self._settled(record, at, end):
                    at += len(block)
                    yield block
            except (NotFound, StorageFault):
                record, before = self._engine.records.get_file(record.id), record
                if record == before:
                    raise
            else:
                record, before = self._engine.records.get_file(record.id), record
                if record == before:
                    return
        size = record.size_bytes
        if at < min(size, size if end is None else end):
            yield from self._engine.store.stream(record.key, at, size if end is None else min(size, end))

    def check(self, file_id: str, *, endpoint: str | None = None) -> Validation:
        """What is wrong with an input file, as a batch to that endpoint would find, or to the one that it names.

        Raises `NotFound`, and `InvalidInput` for an endpoint that is not allowed.
        """
        engine, record = self._engine, self.record(file_id)
        with engine.checking:
            return validate_input(
                lambda: engine.store.stream(record.key, 0, record.size_bytes),
                batch_id="",
                input_key=record.key,
                endpoint=None if endpoint is None else engine.settings.checked_endpoint(endpoint),
                settings=engine.settings,
                max_errors=engine.settings.max_reported_errors,
            )

    def extent(self, file_id: str) -> Extent:
        """How much of the file can be read now; raises `NotFound`."""
        record = self.record(file_id)
        while record.status == "uploaded":
            try:
                parts = list(self._settled_parts(record))
                size = sum(self._engine.store.info(key).size_bytes for key, _ in parts)
            except (NotFound, StorageFault):
                record, before = self.record(file_id), record
                if record == before:
                    raise
            else:
                record, before = self.record(file_id), record
                if record == before:
                    return Extent(size, is_whole=False, lines=sum(lines for _, lines in parts))
        return Extent(record.size_bytes, is_whole=True, lines=self._lines_of(record), key=record.key)

    def _lines_of(self, record: FileRecord) -> int | None:
        """How many lines a batch's file has; none where that is not known without reading it."""
        if record.purpose == "batch":
            return None
        try:
            manifest = read_manifest(self._engine.store, record.key.rpartition("/")[0] + "/")
        except NotFound:
            return None
        return manifest.failed if record.is_error_file else manifest.completed

    def lines(
        self, file_id: str, *, skip: int = 0, limit: int | None = None, search: str | None = None
    ) -> LinesRead:
        """The file's lines behind the first `skip`, at most `limit`, those whose custom_id has `search` in it.

        Of a running batch's file those that are settled. The file is looked through before it is given. Raises
        `NotFound`.
        """
        extent = self.extent(file_id)
        found = find_lines(self.content(file_id, end=extent.size_bytes), skip=skip, limit=limit, search=search)
        blocks = self.content(file_id, start=found.start, end=found.end)
        return LinesRead(matching(blocks, search), found.last, extent.is_whole)

    def _settled(self, record: FileRecord, start: int, end: int | None) -> Iterator[bytes]:
        store, place = self._engine.store, 0
        for key, _ in self._settled_parts(record):
            size = store.info(key).size_bytes
            first, last = max(start - place, 0), size if end is None else min(size, end - place)
            if first < last:
                yield from store.stream(key, first, last)
            place += size

    def _settled_parts(self, record: FileRecord) -> Iterator[tuple[str, int]]:
        """What is settled of a running batch's file, up to the first open chunk: keys and numbers of lines."""
        store = self._engine.store
        batch = self._engine.records.batch_of_file(record.id)
        if batch is None or batch.final_prefix is not None:
            return
        done = finished_keys(store, batch.id, batch.generation)
        for chunk in read_plan(store, batch).chunks if done else ():
            if chunk.index not in done:
                return
            part = part_of(store, done[chunk.index])
            if record.is_error_file and part.failed:
                yield part.keys.errors, part.failed
            elif not record.is_error_file and part.completed:
                yield part.keys.output, part.completed

    def delete(self, file_id: str) -> None:
        """Delete the file; raises `NotFound`, and `Conflict` where a batch that is not over needs it."""
        records = self._engine.records
        record = self.record(file_id)
        keys = (record.key, *_copies(self._engine.store, record))
        records.delete_file(file_id, doomed_with_it=[Doomed(prefix=key, due_at=0) for key in keys])
        sweep_now(self._engine, *keys)


def _check_purpose(purpose: str) -> None:
    if purpose != "batch":
        raise InvalidInput(f"purpose is {purpose!r}; only files of purpose 'batch' are uploaded", param="purpose")


def _copies(store: ObjectStore, record: FileRecord) -> list[str]:
    """Every copy of a batch's result file, and the report page for the error file's sake, which it quotes."""
    if record.purpose == "batch":
        return []
    folder, name = PurePosixPath(record.key).parts[1], PurePosixPath(record.key).name
    names = {name, "report.html"} if record.is_error_file else {name}
    return [info.key for info in store.find(layout.batch_prefix(folder)) if PurePosixPath(info.key).name in names]


def _name_of(file: bytes | Readable) -> str:
    name = getattr(file, "name", None)
    return PurePosixPath(name).name if isinstance(name, str) else "input.jsonl"

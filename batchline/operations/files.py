"""Stored files: uploaded, listed, read, deleted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.files import FileObject, FilePurpose, ListFilesQuery
from batchline.operations.checks import checked
from batchline.operations.expiry import ExpiresAfter, seconds_of
from batchline.operations.pages import Page
from batchline.steps.engine import Engine
from batchline.steps.intake import store_input, store_input_file, store_input_from
from batchline.steps.lifecycle import read_plan
from batchline.steps.parts import finished_keys, part_of
from batchline.steps.sweep import sweep_now
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.storage.records import BatchRecord, Doomed, FileRecord

Upload = str | Path | bytes | BinaryIO | tuple[str, bytes | BinaryIO]
"""A path, an `s3://` or `file://` address, bytes, an open binary file, or a name with one of the last two."""


class Files:
    """The files of an engine's storage. Made by `Batchline.files`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self, *, file: Upload, purpose: FilePurpose = "batch", expires_after: ExpiresAfter | None = None
    ) -> FileObject:
        """Store an input file, decompressed where its name ends in `.gz` or `.zst`, and return it.

        `expires_after` is how long it is kept at least; for ever where absent. Raises `InvalidInput`
        for a purpose other than `batch`, and for a file that cannot be read or is too long.
        """
        if purpose != "batch":
            raise InvalidInput(
                f"purpose is {purpose!r}; only files of purpose 'batch' are uploaded", param="purpose"
            )
        return self._stored(file, seconds_of(expires_after)).to_object()

    def _stored(self, file: Upload, expires_after_s: int | None) -> FileRecord:
        engine = self._engine
        if isinstance(file, str) and "://" in file:
            return store_input_from(engine, file, expires_after=expires_after_s)
        if isinstance(file, str | Path):
            return store_input_file(engine, Path(file), expires_after=expires_after_s)
        name, content = file if isinstance(file, tuple) else (_name_of(file), file)
        stream = io.BytesIO(content) if isinstance(content, bytes) else content
        return store_input(engine, stream, filename=name, expires_after=expires_after_s)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        purpose: FilePurpose | None = None,
        search: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[FileObject]:
        """A page of files, newest first; iterate over it to get those of further pages as well.

        Raises `InvalidInput` for a query that cannot be, `NotFound` for an unknown cursor.
        """
        query = checked(ListFilesQuery, limit=limit, purpose=purpose, search=search, order=order)

        def page(cursor: str | None) -> Page[FileObject]:
            records, has_more = self._engine.records.list_files(
                after=cursor, limit=query.limit, purpose=query.purpose, search=query.search, order=query.order
            )
            return Page([record.to_object() for record in records], has_more, page)

        return page(after)

    def retrieve(self, file_id: str) -> FileObject:
        """The file; raises `NotFound`."""
        return self._engine.records.get_file(file_id).to_object()

    def content(self, file_id: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) of the file, in blocks of about a MiB; raises `NotFound`.

        Of a batch that is running, the output and error files hold what is settled from the input's start on.
        """
        record = self._engine.records.get_file(file_id)
        return self._blocks(record, start, end)

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
                return
        size = record.size_bytes
        if at < min(size, size if end is None else end):
            yield from self._engine.store.stream(record.key, at, size if end is None else min(size, end))

    def _settled(self, record: FileRecord, start: int, end: int | None) -> Iterator[bytes]:
        """What is settled of a running batch's file, from its first chunk up to the first unfinished one."""
        store = self._engine.store
        batch = self._engine.records.batch_of_file(record.id)
        if batch is None or batch.final_prefix is not None:
            return
        place = 0
        for key in self._settled_keys(batch, record.purpose):
            size = store.info(key).size_bytes
            first, last = max(start - place, 0), size if end is None else min(size, end - place)
            if first < last:
                yield from store.stream(key, first, last)
            place += size

    def _settled_keys(self, batch: BatchRecord, purpose: FilePurpose) -> Iterator[str]:
        done = finished_keys(self._engine.store, batch.id, batch.generation)
        for chunk in read_plan(self._engine.store, batch).chunks if done else ():
            if chunk.index not in done:
                return
            part = part_of(self._engine.store, done[chunk.index])
            if purpose == "batch_output" and part.completed:
                yield part.keys.output
            elif purpose == "batch_error" and part.failed:
                yield part.keys.errors

    def delete(self, file_id: str) -> None:
        """Delete the file; raises `NotFound`, and `Conflict` where a batch that is not over needs it."""
        records = self._engine.records
        record = records.get_file(file_id)
        keys = (record.key, *_copies(self._engine.store, record))
        records.delete_file(file_id, doomed_with_it=[Doomed(prefix=key, due_at=0) for key in keys])
        sweep_now(self._engine, *keys)


def _copies(store: ObjectStore, record: FileRecord) -> list[str]:
    """Every copy of a batch's result file, and the report page for the error file's sake, which it quotes."""
    if record.purpose == "batch":
        return []
    folder, name = PurePosixPath(record.key).parts[1], PurePosixPath(record.key).name
    names = {name, "report.html"} if record.purpose == "batch_error" else {name}
    return [info.key for info in store.find(layout.batch_prefix(folder)) if PurePosixPath(info.key).name in names]


def _name_of(file: bytes | BinaryIO) -> str:
    name = getattr(file, "name", None)
    return PurePosixPath(name).name if isinstance(name, str) else "input.jsonl"

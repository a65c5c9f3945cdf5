"""What has been picked up from sources: which version of which file, the batch made of it, what is left to do."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, insert, or_, select, update

from batchline.models.errors import Conflict
from batchline.models.status import TERMINAL
from batchline.storage.rows import BatchRecord, FileRecord, SourceFile
from batchline.storage.schema import batches, doomed, files, source_files
from batchline.storage.statements import insert_batch
from batchline.storage.transactions import Transactions

IDS_AT_ONCE = 500


def source_file_id(uri: str, version: str) -> str:
    """The one key of that version of that file; a digest, as addresses are longer than an index takes."""
    return _digest(uri, version)


class Taken(NamedTuple):
    """The batch that was made of a version of a file, and when, in Unix seconds."""

    batch_id: str
    at: int


class SourceFiles(Transactions):
    """The part of the records that knows what was picked up."""

    def taken(self, ids: Iterable[str]) -> dict[str, Taken]:
        """Those of the versions of files that have been picked up, by id."""
        asked = list(ids)
        found: dict[str, Taken] = {}
        for start in range(0, len(asked), IDS_AT_ONCE):
            found |= self._taken(asked[start : start + IDS_AT_ONCE])
        return found

    def _taken(self, ids: list[str]) -> dict[str, Taken]:
        columns = source_files.c.id, source_files.c.batch_id, source_files.c.taken_at
        statement = select(*columns).where(source_files.c.id.in_(ids))
        rows = self._read(lambda connection: connection.execute(statement).all())
        return {row.id: Taken(row.batch_id, row.taken_at) for row in rows}

    def take(self, picked: SourceFile, file: FileRecord, batch: BatchRecord, *, beside: str) -> SourceFile:
        """Record an input file, its batch, and the version of the source's file that both come from, or nothing.

        The results' place gets a part of the id in its name where another file's results have it; `beside` is the
        folder that places are told apart in. Raises `Conflict` where the version has been picked up already.
        """

        def work(connection: Connection) -> SourceFile:
            place = _free_place(connection, picked, beside)
            settled = msgspec.structs.replace(picked, place=place)
            values = {**msgspec.structs.asdict(settled), "place_id": _digest(beside, place)}
            connection.execute(insert(source_files).values(**values))
            connection.execute(insert(files).values(**msgspec.structs.asdict(file)))
            connection.execute(delete(doomed).where(doomed.c.prefix == file.key))
            insert_batch(connection, batch)
            return settled

        try:
            return self._write(work)
        except Conflict:
            if self.taken([picked.id]):  # by another: the outcome of a commit of ours is always found out
                raise
        return self._write(work)  # another file took the place in the same moment

    def unstarted(self, source_id: str) -> list[str]:
        """The batches of that source that were made and, as far as is known, not started; oldest first."""
        statement = select(source_files.c.batch_id).where(
            source_files.c.source_id == source_id, source_files.c.started_at.is_(None)
        )
        return self._read(
            lambda connection: list(connection.scalars(statement.order_by(source_files.c.batch_id)).all())
        )

    def note_started(self, batch_id: str, *, now: int) -> None:
        """Note that the batch has been started."""
        self._note(source_files.c.batch_id == batch_id, started_at=now)

    def to_write_back(self, source_id: str) -> list[SourceFile]:
        """The source's files whose batches are over and have results that were not written back; oldest first."""
        statement = (
            select(*(source_files.c[name] for name in SourceFile.__struct_fields__))
            .join(batches, batches.c.id == source_files.c.batch_id)
            .where(
                source_files.c.source_id == source_id,
                source_files.c.writes_back,
                batches.c.status.in_([str(state) for state in TERMINAL]),
                or_(
                    source_files.c.written_generation.is_(None),
                    source_files.c.written_generation < batches.c.generation,
                ),
            )
        )
        rows = self._read(lambda connection: connection.execute(statement.order_by(batches.c.id)).all())
        return [_source_file(row) for row in rows]

    def note_written(self, batch_id: str, *, generation: int) -> None:
        """Note that the results of that generation have been written back."""
        older = or_(source_files.c.written_generation.is_(None), source_files.c.written_generation < generation)
        self._note((source_files.c.batch_id == batch_id) & older, written_generation=generation)

    def _note(self, which: ColumnElement[bool], **values: object) -> None:
        self._write(lambda connection: connection.execute(update(source_files).where(which).values(**values)))


def _free_place(connection: Connection, picked: SourceFile, beside: str) -> str:
    """The place, or another name for it where the results of another file go there."""
    held = select(source_files.c.id).where(source_files.c.place_id == _digest(beside, picked.place))
    return picked.place if connection.execute(held).first() is None else f"{picked.place}.{picked.id[:12]}"


def _source_file(row: Row[tuple[object, ...]]) -> SourceFile:
    return SourceFile(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()

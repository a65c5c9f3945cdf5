"""What has been picked up from sources: which version of which file, the batch made of it, what is left to do."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, insert, or_, select, update

from batchline.models.errors import Conflict
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.records.queries import insert_batch
from batchline.storage.records.record_types import BatchRecord, FileRecord, SyncedFile
from batchline.storage.records.schema import batches, files, pending_deletions, synced_files
from batchline.storage.records.transactions import Transactions

MAX_IDS_PER_QUERY = 500


def synced_file_id(uri: str, version: str) -> str:
    """The one key of that version of that file; a digest, as addresses are longer than an index takes."""
    return _hash_texts(uri, version)


class SyncedVersion(NamedTuple):
    """The batch that was made of a version of a file, and when, in Unix seconds."""

    batch_id: str
    recorded_at: int


class SyncedFiles(Transactions):
    """The part of the records that knows what was picked up."""

    def synced_versions(self, version_ids: Iterable[str]) -> dict[str, SyncedVersion]:
        """Those of the versions of files that have been picked up, by id."""
        all_ids = list(version_ids)
        versions: dict[str, SyncedVersion] = {}
        for offset in range(0, len(all_ids), MAX_IDS_PER_QUERY):
            versions |= self._read_synced_versions(all_ids[offset : offset + MAX_IDS_PER_QUERY])
        return versions

    def _read_synced_versions(self, ids: list[str]) -> dict[str, SyncedVersion]:
        columns = synced_files.c.id, synced_files.c.batch_id, synced_files.c.taken_at
        statement = select(*columns).where(synced_files.c.id.in_(ids))
        rows = self._run_read(lambda connection: connection.execute(statement).all())
        return {row.id: SyncedVersion(row.batch_id, row.taken_at) for row in rows}

    def record_synced_file(
        self, synced_file: SyncedFile, file: FileRecord, batch: BatchRecord, *, parent_uri: str
    ) -> SyncedFile:
        """Record an input file, its batch, and the version of the source's file that both come from, or nothing.

        The results' place gets a part of the id in its name where another file's results have it; `beside` is the
        folder that places are told apart in. Raises `Conflict` where the version has been picked up already.
        """

        def insert_rows(connection: Connection) -> SyncedFile:
            result_name = _free_result_name(connection, synced_file, parent_uri)
            named = msgspec.structs.replace(synced_file, place=result_name)
            values = {**msgspec.structs.asdict(named), "place_id": _hash_texts(parent_uri, result_name)}
            connection.execute(insert(synced_files).values(**values))
            connection.execute(insert(files).values(**msgspec.structs.asdict(file)))
            connection.execute(delete(pending_deletions).where(pending_deletions.c.prefix == file.key))
            insert_batch(connection, batch)
            return named

        try:
            return self._run_write(insert_rows)
        except Conflict:
            if self.synced_versions(
                [synced_file.id]
            ):  # by another: the outcome of a commit of ours is always found out
                raise
        return self._run_write(insert_rows)  # another file took the place in the same moment

    def unstarted_batches(self, source_id: str) -> list[str]:
        """The batches of that source that were made and, as far as is known, not started; oldest first."""
        statement = select(synced_files.c.batch_id).where(
            synced_files.c.source_id == source_id, synced_files.c.started_at.is_(None)
        )
        return self._run_read(
            lambda connection: list(connection.scalars(statement.order_by(synced_files.c.batch_id)).all())
        )

    def note_started(self, batch_id: str, *, now: int) -> None:
        """Note that the batch has been started."""
        self._update_rows(synced_files.c.batch_id == batch_id, started_at=now)

    def pending_write_backs(self, source_id: str) -> list[SyncedFile]:
        """The source's files whose batches are over and have results that were not written back; oldest first."""
        statement = (
            select(*(synced_files.c[name] for name in SyncedFile.__struct_fields__))
            .join(batches, batches.c.id == synced_files.c.batch_id)
            .where(
                synced_files.c.source_id == source_id,
                synced_files.c.writes_back,
                batches.c.status.in_([str(status) for status in TERMINAL_STATUSES]),
                or_(
                    synced_files.c.written_generation.is_(None),
                    synced_files.c.written_generation < batches.c.generation,
                ),
            )
        )
        rows = self._run_read(lambda connection: connection.execute(statement.order_by(batches.c.id)).all())
        return [_from_row(row) for row in rows]

    def note_written(self, batch_id: str, *, generation: int) -> None:
        """Note that the results of that generation have been written back."""
        is_older = or_(synced_files.c.written_generation.is_(None), synced_files.c.written_generation < generation)
        self._update_rows((synced_files.c.batch_id == batch_id) & is_older, written_generation=generation)

    def _update_rows(self, condition: ColumnElement[bool], **values: object) -> None:
        self._run_write(
            lambda connection: connection.execute(update(synced_files).where(condition).values(**values))
        )


def _free_result_name(connection: Connection, synced_file: SyncedFile, parent_uri: str) -> str:
    """The place, or another name for it where the results of another file go there."""
    name_taken = select(synced_files.c.id).where(
        synced_files.c.place_id == _hash_texts(parent_uri, synced_file.place)
    )
    return (
        synced_file.place
        if connection.execute(name_taken).first() is None
        else f"{synced_file.place}.{synced_file.id[:12]}"
    )


def _from_row(row: Row[tuple[object, ...]]) -> SyncedFile:
    return SyncedFile(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _hash_texts(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()

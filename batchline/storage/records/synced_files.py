"""Records of the files synced from sources: their versions, batches, and pending starts and write-backs."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, delete, insert, or_, select, update

from batchline.models.errors import Conflict
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.records.queries import insert_batch
from batchline.storage.records.record_types import BatchRecord, FileRecord, SyncedFile, record_from_row
from batchline.storage.records.schema import batches, files, pending_deletions, synced_files
from batchline.storage.records.transactions import Transactions

MAX_IDS_PER_QUERY = 500


def synced_file_id(uri: str, version: str) -> str:
    """Return the key of a version of a file: a digest, because addresses can be too long for an index."""
    return _hash_texts(uri, version)


class SyncedVersion(NamedTuple):
    """The batch made from a version of a file, and the time in Unix seconds."""

    batch_id: str
    recorded_at: int


class SyncedFiles(Transactions):
    """Operations on the records of synced files."""

    def synced_versions(self, version_ids: Iterable[str]) -> dict[str, SyncedVersion]:
        """Return those of the versions that are recorded, by id."""
        all_ids = list(version_ids)
        columns = synced_files.c.id, synced_files.c.batch_id, synced_files.c.taken_at
        versions: dict[str, SyncedVersion] = {}
        for offset in range(0, len(all_ids), MAX_IDS_PER_QUERY):
            ids = all_ids[offset : offset + MAX_IDS_PER_QUERY]
            rows = self._read_all(select(*columns).where(synced_files.c.id.in_(ids)))
            versions |= {row.id: SyncedVersion(row.batch_id, row.taken_at) for row in rows}
        return versions

    def record_synced_file(
        self, synced_file: SyncedFile, file: FileRecord, batch: BatchRecord, *, parent_uri: str
    ) -> SyncedFile:
        """Record a version of a source's file, its input file and its batch in one transaction.

        Returns the record with its final `place`, which gets a suffix if another file's results below `parent_uri`
        have that name. Raises `Conflict` if the version is recorded already.
        """

        def insert_rows(connection: Connection) -> SyncedFile:
            result_name = synced_file.place
            is_taken = select(synced_files.c.id).where(
                synced_files.c.place_id == _hash_texts(parent_uri, result_name)
            )
            if connection.execute(is_taken).first() is not None:
                result_name = f"{result_name}.{synced_file.id[:12]}"
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
            # Recorded by another process, not by us: `_run_write` finds out the outcome of its own commits.
            if self.synced_versions([synced_file.id]):
                raise
        return self._run_write(insert_rows)  # another file took the name at the same moment

    def unstarted_batches(self, source_id: str) -> list[str]:
        """Return the ids of the source's batches that are not recorded as started, oldest first."""
        batch_ids = select(synced_files.c.batch_id).order_by(synced_files.c.batch_id)
        is_unstarted = (synced_files.c.source_id == source_id, synced_files.c.started_at.is_(None))
        return [row.batch_id for row in self._read_all(batch_ids.where(*is_unstarted))]

    def note_started(self, batch_id: str, *, now: int) -> None:
        """Record that the batch was started at `now`, in Unix seconds."""
        self._write(update(synced_files).where(synced_files.c.batch_id == batch_id).values(started_at=now))

    def pending_write_backs(self, source_id: str) -> list[SyncedFile]:
        """Return the source's files whose finished batches have results to write back, oldest first."""
        statement = (
            select(*(synced_files.c[name] for name in SyncedFile.__struct_fields__))
            .join(batches, batches.c.id == synced_files.c.batch_id)
            .where(
                synced_files.c.source_id == source_id,
                synced_files.c.writes_back,
                batches.c.status.in_(TERMINAL_STATUSES),
                or_(
                    synced_files.c.written_generation.is_(None),
                    synced_files.c.written_generation < batches.c.generation,
                ),
            )
        )
        return [record_from_row(SyncedFile, row) for row in self._read_all(statement.order_by(batches.c.id))]

    def note_written(self, batch_id: str, *, generation: int) -> None:
        """Record that the results of that generation were written back."""
        # A slower writer of an earlier generation must not lower the number.
        is_older = or_(synced_files.c.written_generation.is_(None), synced_files.c.written_generation < generation)
        statement = update(synced_files).where(synced_files.c.batch_id == batch_id, is_older)
        self._write(statement.values(written_generation=generation))


def _hash_texts(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()

"""Records of files and of pending deletions."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, Table, bindparam, func, insert, select
from sqlalchemy import delete as delete_from

from batchline.models.errors import Conflict, NotFound
from batchline.storage.records.batch_index import files_query
from batchline.storage.records.queries import batches_using, lock_file, schedule_deletion
from batchline.storage.records.record_types import FileRecord, PendingDeletion, record_from_row
from batchline.storage.records.schema import files, pending_deletions
from batchline.storage.records.search import is_storable
from batchline.storage.records.transactions import Transactions


class FileRecords(Transactions):
    """Operations on files and pending deletions."""

    def add_file(self, record: FileRecord) -> None:
        """Insert a file and cancel the pending deletion of its content."""

        # In one transaction, so that recorded content never has a pending deletion.
        def insert_file(connection: Connection) -> None:
            connection.execute(insert(files).values(**msgspec.structs.asdict(record)))
            connection.execute(delete_from(pending_deletions).where(pending_deletions.c.prefix == record.key))

        self._run_write(insert_file)

    def schedule_deletion(self, deletion: PendingDeletion) -> None:
        """Schedule objects for deletion, which then happens even if this process dies."""
        self._run_write(lambda connection: schedule_deletion(connection, deletion))

    def schedule_deletion_if_unrecorded(self, key: str, *, due_at: int) -> bool:
        """Schedule the deletion of content unless a file record has it; return True if it was scheduled."""

        def schedule_if_unrecorded(connection: Connection) -> bool:
            if connection.execute(select(files.c.id).where(files.c.key == key)).first() is not None:
                return False
            schedule_deletion(connection, PendingDeletion(prefix=key, due_at=due_at))
            return True

        return self._run_write(schedule_if_unrecorded)

    def due_deletions(self, *, now: float) -> list[PendingDeletion]:
        """Return the deletions that are due at `now`, oldest first."""
        statement = select(pending_deletions.c.prefix, pending_deletions.c.due_at, pending_deletions.c.kept).where(
            pending_deletions.c.due_at <= now
        )
        rows = self._read_all(statement.order_by(pending_deletions.c.id))
        return [record_from_row(PendingDeletion, row) for row in rows]

    def unschedule_deletion(self, prefix: str) -> None:
        """Remove the pending deletion of that prefix, after it was carried out."""
        self._write(delete_from(pending_deletions).where(pending_deletions.c.prefix == prefix))

    def get_file(self, file_id: str, *, member_id: str | None = None) -> FileRecord:
        """Return the file; if `member_id` is given, that member must own it. Raises `NotFound`."""
        row = self._run_read(lambda connection: find_row(connection, files, file_id, member_id))
        if row is None:
            raise NotFound(f"there is no file {file_id}")
        return record_from_row(FileRecord, row)

    def total_input_bytes(self, member_id: str) -> int:
        """Return the total size of the member's input files."""
        statement = select(func.sum(files.c.size_bytes)).where(
            files.c.member_id == member_id, files.c.purpose == "batch"
        )
        return int(self._run_read(lambda connection: connection.execute(statement).scalar()) or 0)

    def expired_files(self, *, now: int) -> list[FileRecord]:
        """Return the files that have expired and that no unfinished batch uses."""
        statement = select(files).where(files.c.expires_at <= now, ~batches_using(files.c.id).exists())
        return [record_from_row(FileRecord, row) for row in self._read_all(statement.order_by(files.c.id))]

    def delete_file(self, file_id: str, *, deletions: Sequence[PendingDeletion] = ()) -> None:
        """Delete a file's record and schedule `deletions`.

        Raises `NotFound`, or `Conflict` if an unfinished batch uses the file.
        """
        needing_batches = batches_using(file_id)
        statement = (
            delete_from(files).where(files.c.id == file_id, ~needing_batches.exists()).returning(files.c.id)
        )

        def delete_unless_needed(connection: Connection) -> tuple[Row[Any] | None, str | None, bool]:
            # Locked first, so that no batch of the file is made between the check and the deletion.
            lock_file(connection, file_id)
            deleted_row = connection.execute(statement).first()
            if deleted_row is not None:
                for deletion in deletions:
                    schedule_deletion(connection, deletion)
            batch_id = None if deleted_row is not None else connection.execute(needing_batches).scalar()
            return deleted_row, batch_id, find_row(connection, files, file_id) is not None

        deleted_row, batch_id, exists = self._run_write(delete_unless_needed)
        if deleted_row is not None:
            return
        if not exists:
            raise NotFound(f"there is no file {file_id}")
        raise Conflict(
            f"file {file_id} is used by batch {batch_id}, which is not finished; cancel the batch first"
        )

    def list_files(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        purpose: str | None = None,
        search: str | None = None,
        order: str = "desc",
        member_id: str | None = None,
    ) -> tuple[list[FileRecord], bool]:
        """Return a page of files by age, and True if more follow; raises `NotFound` for an unknown `after`."""
        cursor = None if after is None else self.get_file(after)
        statement = files_query(after=cursor, purpose=purpose, search=search, order=order, member_id=member_id)
        rows = self._read_all(statement.limit(limit + 1))
        return [record_from_row(FileRecord, row) for row in rows[:limit]], len(rows) > limit


def find_row(connection: Connection, table: Table, row_id: str, member_id: str | None = None) -> Row[Any] | None:
    """Return the row of that id, or None; if `member_id` is given, that member must own it."""
    if not is_storable(row_id):  # PostgreSQL raises an error for such text, which no id contains
        return None
    statement = _row_query(table, is_restricted=member_id is not None)
    return connection.execute(statement, {"known_as": row_id, "member": member_id}).first()


@cache
def _row_query(table: Table, *, is_restricted: bool) -> Select[Any]:
    """Return the query, cached because building it takes as long as running it."""
    statement = select(table).where(table.c.id == bindparam("known_as"))
    return statement.where(table.c.member_id == bindparam("member")) if is_restricted else statement

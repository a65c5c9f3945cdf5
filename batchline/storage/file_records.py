"""Records of files, and of what is doomed to be deleted."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, Table, bindparam, func, insert, select
from sqlalchemy import delete as delete_from

from batchline.models.errors import Conflict, NotFound
from batchline.storage.listing import files_statement
from batchline.storage.rows import Doomed, FileRecord
from batchline.storage.schema import doomed, files
from batchline.storage.search import is_storable
from batchline.storage.statements import doom, locked_file, needing
from batchline.storage.transactions import Transactions


class FileRecords(Transactions):
    """The half of the records that is about files."""

    def add_file(self, record: FileRecord) -> None:
        """Record a file, whose content then is doomed no more."""

        def work(connection: Connection) -> None:
            connection.execute(insert(files).values(**msgspec.structs.asdict(record)))
            connection.execute(delete_from(doomed).where(doomed.c.prefix == record.key))

        self._write(work)

    def doom(self, some: Doomed) -> None:
        """Note objects that are to be deleted, so that it happens even if this process dies."""
        self._write(lambda connection: doom(connection, some))

    def doom_unrecorded(self, key: str, *, due_at: int) -> bool:
        """Doom the content of a file of which no record was made; false, and nothing is done, if there is one."""

        def work(connection: Connection) -> bool:
            if connection.execute(select(files.c.id).where(files.c.key == key)).first() is not None:
                return False
            doom(connection, Doomed(prefix=key, due_at=due_at))
            return True

        return self._write(work)

    def doomed(self, *, now: float) -> list[Doomed]:
        """What is due to be deleted by then."""
        statement = select(doomed.c.prefix, doomed.c.due_at, doomed.c.kept).where(doomed.c.due_at <= now)
        rows = self._read(lambda connection: connection.execute(statement.order_by(doomed.c.id)).all())
        return [Doomed(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name for it

    def absolve(self, prefix: str) -> None:
        """Note that what was doomed below that prefix is gone."""
        self._write(lambda connection: connection.execute(delete_from(doomed).where(doomed.c.prefix == prefix)))

    def get_file(self, file_id: str, *, member_id: str | None = None) -> FileRecord:
        """The file, if it is that member's, or whose ever where none is named; raises `NotFound`."""
        row = self._read(lambda connection: row_of(connection, files, file_id, member_id))
        if row is None:
            raise NotFound(f"there is no file {file_id}")
        return FileRecord(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it

    def input_bytes(self, member_id: str) -> int:
        """The size of all input files that the member keeps."""
        statement = select(func.sum(files.c.size_bytes)).where(
            files.c.member_id == member_id, files.c.purpose == "batch"
        )
        return int(self._read(lambda connection: connection.execute(statement).scalar()) or 0)

    def expired_files(self, *, now: int) -> list[FileRecord]:
        """The files that were to be kept until then at most, and that no batch needs that is not over."""
        statement = select(files).where(files.c.expires_at <= now, ~needing(files.c.id).exists())
        rows = self._read(lambda connection: connection.execute(statement.order_by(files.c.id)).all())
        return [FileRecord(**row._mapping) for row in rows]  # noqa: SLF001 - as above

    def delete_file(self, file_id: str, *, doomed_with_it: Sequence[Doomed] = ()) -> None:
        """Forget a file; raises `NotFound`, and `Conflict` where a batch that is not over needs it."""
        needed = needing(file_id)
        statement = delete_from(files).where(files.c.id == file_id, ~needed.exists()).returning(files.c.id)

        def work(connection: Connection) -> tuple[Row[Any] | None, str | None, bool]:
            locked_file(connection, file_id)
            gone = connection.execute(statement).first()
            if gone is not None:
                for each in doomed_with_it:
                    doom(connection, each)
            user = None if gone is not None else connection.execute(needed).scalar()
            return gone, user, row_of(connection, files, file_id) is not None

        gone, user, is_there = self._write(work)
        if gone is not None:
            return
        if not is_there:
            raise NotFound(f"there is no file {file_id}")
        raise Conflict(f"file {file_id} is needed by batch {user}, which is not over; cancel the batch first")

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
        """A page of files by age, and whether more follow; raises `NotFound` for a cursor that is no file."""
        cursor = None if after is None else self.get_file(after)
        statement = files_statement(after=cursor, purpose=purpose, search=search, order=order, member_id=member_id)
        rows = self._read(lambda connection: connection.execute(statement.limit(limit + 1)).all())
        return [FileRecord(**row._mapping) for row in rows[:limit]], len(rows) > limit  # noqa: SLF001 - as above


def row_of(connection: Connection, table: Table, known_as: str, member_id: str | None = None) -> Row[Any] | None:
    """The table's row of that id, of that member where one is named; none where there is none."""
    if not is_storable(known_as):
        return None
    statement = _one_of(table, is_confined=member_id is not None)
    return connection.execute(statement, {"known_as": known_as, "member": member_id}).first()


@cache
def _one_of(table: Table, *, is_confined: bool) -> Select[Any]:
    """Made once: to make it takes as long as to run it."""
    statement = select(table).where(table.c.id == bindparam("known_as"))
    return statement.where(table.c.member_id == bindparam("member")) if is_confined else statement

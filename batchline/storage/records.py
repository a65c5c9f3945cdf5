"""Records of files and batches: who may change what, each change one atomic statement."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    Table,
    Update,
    case,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import delete as delete_from

from batchline.models.batches import BatchListResponse, ListBatchesQuery
from batchline.models.errors import Conflict, LeaseLost, NotFound
from batchline.models.settings import Settings
from batchline.models.status import ACTIVE, TERMINAL, BatchStatus, sources_of, timestamp_field
from batchline.storage import layout
from batchline.storage.database import open_database, upgrade_database
from batchline.storage.listing import (
    LISTED_FIELDS,
    files_statement,
    list_again,
    listed_ids,
    shown_columns,
)
from batchline.storage.rows import (
    BatchRecord,
    Doomed,
    FileChanges,
    FileRecord,
    Lease,
    SourceFile,
    batch_of,
    columns_of,
)
from batchline.storage.schema import batches, doomed, files, listed_batches
from batchline.storage.search import is_storable
from batchline.storage.source_files import SourceFiles, source_file_id
from batchline.storage.statements import (
    apply_changes,
    doom,
    insert_batch,
    is_free,
    leased,
    locked_file,
    needing,
)

__all__ = [
    "BatchRecord",
    "Doomed",
    "FileChanges",
    "FileRecord",
    "Lease",
    "Records",
    "SourceFile",
    "open_records",
    "source_file_id",
    "upgrade_database",
]


class Records(SourceFiles):
    """Files and batches in a database that several processes share; may be used from any thread."""

    def add_file(self, record: FileRecord) -> None:
        """Record a file, whose content then is doomed no more."""

        def work(connection: Connection) -> None:
            connection.execute(insert(files).values(**msgspec.structs.asdict(record)))
            connection.execute(delete_from(doomed).where(doomed.c.prefix == record.key))

        self._write(work)

    def doom(self, some: Doomed) -> None:
        """Note objects that are to be deleted, so that it happens even if this process dies."""
        self._write(lambda connection: doom(connection, some))

    def doomed(self, *, now: float) -> list[Doomed]:
        """What is due to be deleted by then."""
        statement = select(doomed.c.prefix, doomed.c.due_at, doomed.c.kept).where(doomed.c.due_at <= now)
        rows = self._read(lambda connection: connection.execute(statement.order_by(doomed.c.id)).all())
        return [Doomed(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name for it

    def absolve(self, prefix: str) -> None:
        """Note that what was doomed below that prefix is gone."""
        self._write(lambda connection: connection.execute(delete_from(doomed).where(doomed.c.prefix == prefix)))

    def get_file(self, file_id: str) -> FileRecord:
        """The file; raises `NotFound`."""
        row = self._read(lambda connection: _row(connection, files, file_id))
        if row is None:
            raise NotFound(f"there is no file {file_id}")
        return FileRecord(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it

    def update_file(self, file_id: str, **fields: object) -> None:
        """Change a file's record."""
        self._write(
            lambda connection: connection.execute(update(files).where(files.c.id == file_id).values(**fields))
        )

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
            return gone, user, _row(connection, files, file_id) is not None

        gone, user, is_there = self._write(work)
        if gone is not None:
            return
        if not is_there:
            raise NotFound(f"there is no file {file_id}")
        raise Conflict(f"file {file_id} is needed by batch {user}, which is not over; cancel the batch first")

    def add_batch(self, record: BatchRecord, *, needs_input: bool = False) -> BatchRecord:
        """Record a batch and return it, or the one that the same flow run has made before.

        With `needs_input`, raises `NotFound` where its input file has been deleted by then.
        """

        def work(connection: Connection) -> None:
            if needs_input:
                locked_file(connection, record.input_file_id)
            insert_batch(connection, record)

        try:
            self._write(work)
        except Conflict:
            known = self.batch_of_flow_run(record.flow_run_id) if record.flow_run_id else None
            if known is None:
                raise
            return known
        return record

    def get_batch(self, batch_id: str) -> BatchRecord:
        """The batch; raises `NotFound`."""
        row = self._read(lambda connection: _row(connection, batches, batch_id))
        if row is None:
            raise NotFound(f"there is no batch {batch_id}; `batchline batches list` shows which there are")
        return batch_of(row)

    def batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """The batch that the flow run made, if it made one."""
        statement = select(batches).where(batches.c.flow_run_id == flow_run_id)
        row = self._read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_of(row)

    def last_batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """The batch that the flow run made or went on with, if it came to that."""
        made = self.batch_of_flow_run(flow_run_id)
        if made is not None:
            return made
        statement = select(batches).where(batches.c.last_flow_run_id == flow_run_id).limit(1)
        row = self._read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_of(row)

    def note_flow_run(self, batch_id: str, flow_run_id: str) -> None:
        """Note which flow run has the batch now; does nothing to a batch that is gone."""
        statement = update(batches).where(batches.c.id == batch_id).values(last_flow_run_id=flow_run_id)
        self._write(lambda connection: connection.execute(statement))

    def batch_of_file(self, file_id: str) -> BatchRecord | None:
        """The batch whose output or error file that is."""
        statement = select(batches).where(
            or_(batches.c.output_file_id == file_id, batches.c.error_file_id == file_id)
        )
        row = self._read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_of(row)

    def list_batches(self, query: ListBatchesQuery, *, now: int) -> BatchListResponse:
        """A page of batches as the API shows them; raises as `list_records` does."""
        records, has_more = self.list_records(query, now=now)
        page = [record.to_response(include_analytics=True) for record in records]
        return BatchListResponse(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=has_more,
        )

    def list_records(self, query: ListBatchesQuery, *, now: int) -> tuple[list[BatchRecord], bool]:
        """A page of batches, and whether more follow; raises `NotFound` for a cursor that is no batch.

        They have their analytics where the query includes them.
        """
        after = None if query.after is None else self.get_batch(query.after)

        def work(connection: Connection) -> tuple[list[str], dict[str, Row[Any]]]:
            ids = listed_ids(connection, query, after=after, now=now)
            rows = connection.execute(select(*shown_columns(query)).where(batches.c.id.in_(ids[: query.limit])))
            return ids, {row.id: row for row in rows}

        ids, rows = self._read(work)
        return [batch_of(rows[each]) for each in ids[: query.limit] if each in rows], len(ids) > query.limit

    def list_files(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        purpose: str | None = None,
        search: str | None = None,
        order: str = "desc",
    ) -> tuple[list[FileRecord], bool]:
        """A page of files by age, and whether more follow; raises `NotFound` for a cursor that is no file."""
        cursor = None if after is None else self.get_file(after)
        statement = files_statement(after=cursor, purpose=purpose, search=search, order=order).limit(limit + 1)
        rows = self._read(lambda connection: connection.execute(statement).all())
        return [FileRecord(**row._mapping) for row in rows[:limit]], len(rows) > limit  # noqa: SLF001 - as above

    def move(
        self,
        batch_id: str,
        target: BatchStatus,
        *,
        now: int,
        lease: Lease | None = None,
        file_changes: FileChanges | None = None,
        **fields: object,
    ) -> BatchRecord:
        """Bring the batch to that state, set the state's timestamp and those fields, and return it.

        The changes of file records happen with it or not at all. Raises `Conflict` where the state that it is in
        does not allow it, `LeaseLost` where the lease is no longer the batch's.
        """
        stamp = timestamp_field(target)
        values = columns_of({**fields, **({stamp: now} if stamp else {}), "status": target})
        allowed = [str(state) for state in sources_of(target)]
        statement = update(batches).where(batches.c.status.in_(allowed))
        return self._change(statement, batch_id, lease, values, f"cannot become {target}", file_changes)

    def update(self, batch_id: str, *, lease: Lease | None = None, **fields: object) -> BatchRecord:
        """Change fields of the batch, its state apart, and return it; raises as `move` does."""
        return self._change(update(batches), batch_id, lease, columns_of(fields), "cannot be changed")

    def claim(self, batch_id: str, *, owner: str, now: float, lease_s: float) -> Lease:
        """Take the batch's lease; raises `Conflict` while another's heartbeat is younger than `lease_s`."""
        free = or_(batches.c.lease_owner == owner, is_free(now=now, lease_s=lease_s))
        values = {"epoch": batches.c.epoch + 1, "lease_owner": owner, "lease_at": now}
        batch = self._change(update(batches).where(free), batch_id, None, values, "is being run by another")
        return Lease(batch_id, owner, batch.epoch)

    def retry(
        self, batch_id: str, *, now: int, generation: int, file_changes: FileChanges, **fields: object
    ) -> BatchRecord:
        """Make a finished batch `in_progress` again, as the generation after that one, and return it.

        The marks of its end are cleared. Raises `Conflict` where it is not over or another retry came first.
        """
        statement = update(batches).where(
            batches.c.status.in_([str(state) for state in TERMINAL]), batches.c.generation == generation
        )
        cleared = {f"{state}_at": None for state in (*TERMINAL, BatchStatus.FINALIZING, BatchStatus.CANCELLING)}
        values = columns_of(
            {
                **cleared,
                "errors": None,
                "lease_owner": None,
                "lease_at": None,
                **fields,
                "generation": generation + 1,
                "in_progress_at": now,
                "status": BatchStatus.IN_PROGRESS,
            }
        )
        return self._change(statement, batch_id, None, values, "cannot be retried", file_changes)

    def delete_batch(self, batch_id: str, *, now: float, lease_s: float) -> BatchRecord:
        """Forget a batch and its output and error files, and return what it was.

        Raises `NotFound`, and `Conflict` while a runner has it.
        """
        statement = (
            delete_from(batches)
            .where(batches.c.id == batch_id, is_free(now=now, lease_s=lease_s))
            .returning(*batches.c)
        )

        def work(connection: Connection) -> BatchRecord | None:
            row = connection.execute(statement).first()
            if row is None:
                return None
            batch = batch_of(row)
            own = [batch.output_file_id, batch.error_file_id]
            connection.execute(delete_from(files).where(files.c.id.in_([each for each in own if each])))
            connection.execute(delete_from(listed_batches).where(listed_batches.c.batch_id == batch.id))
            doom(connection, Doomed(prefix=layout.batch_prefix(batch.id), due_at=0))
            return batch

        gone = self._write(work)
        if gone is None:
            batch = self.get_batch(batch_id)
            raise Conflict(f"batch {batch_id} is being run ({batch.lease_owner}); delete it when that has ended")
        return gone

    def beat(
        self, lease: Lease, *, now: float, completed: int | None = None, failed: int | None = None
    ) -> BatchStatus:
        """Keep the lease, note the counts, and return the batch's state; raises `LeaseLost`."""
        counts = {"completed": completed, "failed": failed}
        goes_on = batches.c.status.in_([str(state) for state in ACTIVE])  # a late heartbeat must not undo an end
        grown = {
            name: case((goes_on, count), else_=batches.c[name])
            for name, count in counts.items()
            if count is not None
        }
        values = {"lease_at": now, **grown}
        return self._change(update(batches), lease.batch_id, lease, values, "cannot be kept").status

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that another may take it at once; a lost one is let be."""
        statement = leased(update(batches), lease).values(lease_owner=None, lease_at=None)
        self._write(lambda connection: connection.execute(statement))

    def _change(
        self,
        statement: Update,
        batch_id: str,
        lease: Lease | None,
        values: Mapping[str, object],
        problem: str,
        file_changes: FileChanges | None = None,
    ) -> BatchRecord:
        guarded = statement.where(batches.c.id == batch_id)
        if lease is not None:
            guarded = leased(guarded, lease)
        guarded = guarded.values(**values).returning(*batches.c)

        def work(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            changed = connection.execute(guarded).first()
            if changed is not None and file_changes is not None:
                apply_changes(connection, file_changes)
            if changed is not None and not LISTED_FIELDS.isdisjoint(values):
                list_again(connection, batch_of(changed))
            return changed, changed if changed is not None else _row(connection, batches, batch_id)

        changed, present = self._write(work)
        if changed is None:
            raise _refusal(batch_id, present, lease, problem)
        return batch_of(changed)


def open_records(settings: Settings) -> Records:
    """The records in the settings' database; raises as `open_database` does."""
    return Records(open_database(settings))


def _row(connection: Connection, table: Table, known_as: str) -> Row[Any] | None:
    if not is_storable(known_as):
        return None
    return connection.execute(select(table).where(table.c.id == known_as)).first()


def _refusal(batch_id: str, row: Row[Any] | None, lease: Lease | None, problem: str) -> Exception:
    if row is None:
        return NotFound(f"there is no batch {batch_id}")
    batch = batch_of(row)
    if lease is not None and (batch.epoch, batch.lease_owner) != (lease.epoch, lease.owner):
        return LeaseLost(f"batch {batch_id} has been taken over by another runner ({batch.lease_owner or 'none'})")
    if problem.startswith("is being run"):
        return Conflict(
            f"batch {batch_id} {problem} process ({batch.lease_owner}); if that one is dead, try again when its "
            "lease has gone stale"
        )
    return Conflict(f"batch {batch_id} is {batch.status} and {problem}")

"""Records of files and batches: who may change what, each change one atomic statement."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import delete as delete_from

from batchline.models.batches import BatchListResponse, ListBatchesQuery
from batchline.models.errors import Conflict, InvalidInput, LimitReached
from batchline.models.settings import Settings
from batchline.models.status import TERMINAL, BatchStatus, sources_of, timestamp_field
from batchline.storage import layout
from batchline.storage.clock import database_time
from batchline.storage.database import open_database, upgrade_database
from batchline.storage.file_records import FileRecords, row_of
from batchline.storage.keys import KeyRecords
from batchline.storage.leases import Leases, no_batch
from batchline.storage.listing import (
    listed_ids,
)
from batchline.storage.overview import Overview
from batchline.storage.rows import (
    BatchRecord,
    Doomed,
    FileChanges,
    FileRecord,
    Idempotency,
    Lease,
    Room,
    SourceFile,
    batch_of,
    columns_of,
)
from batchline.storage.schema import TO_ANNOUNCE, batches, files, idempotency_keys, listed_batches
from batchline.storage.senders import forget_senders
from batchline.storage.source_files import SourceFiles, Taken, source_file_id
from batchline.storage.statements import (
    check_room,
    doom,
    insert_batch,
    is_free,
    locked_file,
)

__all__ = [
    "BatchRecord",
    "Doomed",
    "FileChanges",
    "FileRecord",
    "Idempotency",
    "Lease",
    "Records",
    "Room",
    "SourceFile",
    "Taken",
    "no_batch",
    "open_records",
    "source_file_id",
    "upgrade_database",
]


class Records(FileRecords, SourceFiles, Leases):
    """Files and batches in a database that several processes share; may be used from any thread."""

    @property
    def keys(self) -> KeyRecords:
        """Members and keys, in the same database."""
        return KeyRecords(self._engine)

    @property
    def overview(self) -> Overview:
        """Figures of all batches together."""
        return Overview(self._engine)

    def add_batch(
        self,
        record: BatchRecord,
        *,
        needs_input: bool = False,
        room: Room | None = None,
        idempotency: Idempotency | None = None,
    ) -> BatchRecord:
        """Record a batch and return it, or the one that the same flow run or the same key has made before.

        With `needs_input`, raises `NotFound` where its input file has been deleted by then; `LimitReached` where
        the `room` is taken up.
        """

        def work(connection: Connection) -> None:
            if needs_input:
                locked_file(connection, record.input_file_id)
            if room is not None:
                check_room(connection, room)
            if idempotency is not None:
                asked = {**msgspec.structs.asdict(idempotency), "batch_id": record.id}
                connection.execute(insert(idempotency_keys).values(**asked))
            insert_batch(connection, record)

        try:
            self._write(work)
        except LimitReached:
            raise
        except Conflict:
            known = self.batch_of_flow_run(record.flow_run_id) if record.flow_run_id else None
            known = self.batch_of_key(idempotency) if idempotency else known
            if known is None:
                raise
            return known
        return record

    def batch_of_key(self, asked: Idempotency) -> BatchRecord | None:
        """The batch that was made with that key, if one was; raises `InvalidInput` where another was asked for."""

        def work(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            made = connection.execute(select(idempotency_keys).where(idempotency_keys.c.key == asked.key)).first()
            return made, None if made is None else row_of(connection, batches, made.batch_id)

        made, row = self._read(work)
        if made is None or row is None:
            return None
        if made.request != asked.request:
            raise InvalidInput(
                "this Idempotency-Key was used for another batch; use a new one for each batch",
                param="Idempotency-Key",
            )
        return batch_of(row)

    def get_batch(self, batch_id: str, *, member_id: str | None = None) -> BatchRecord:
        """The batch, if it is that member's, or whose ever where none is named; raises `NotFound`."""
        row = self._read(lambda connection: row_of(connection, batches, batch_id, member_id))
        if row is None:
            raise no_batch(batch_id)
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

    def unannounced(self, *, ended_before: int) -> list[BatchRecord]:
        """Return batches that a flow run had, that ended by then, and whose end is not announced."""
        over = batches.c.status.in_([str(state) for state in TERMINAL])
        statement = select(batches).where(TO_ANNOUNCE, over).order_by(batches.c.id)
        rows = self._read(lambda connection: connection.execute(statement).all())
        return [batch for row in rows if (batch := batch_of(row)).ended_at <= ended_before]

    def note_announced(self, batch_id: str, *, generation: int, now: int) -> None:
        """Note that the end of that generation of the batch is announced; does nothing to one that is retried."""
        over = batches.c.status.in_([str(state) for state in TERMINAL])
        statement = update(batches).where(batches.c.id == batch_id, batches.c.generation == generation, over)
        self._write(lambda connection: connection.execute(statement.values(announced_at=now)))

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
        page = [record.to_response(include_analytics=query.with_analytics) for record in records]
        return BatchListResponse(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=has_more,
        )

    def list_records(self, query: ListBatchesQuery, *, now: int) -> tuple[list[BatchRecord], bool]:
        """A page of batches, and whether more follow; raises `NotFound` for a cursor that is no batch."""
        after = None if query.after is None else self.get_batch(query.after)

        def work(connection: Connection) -> tuple[list[str], dict[str, Row[Any]]]:
            ids = listed_ids(connection, query, after=after, now=now)
            rows = connection.execute(select(batches).where(batches.c.id.in_(ids[: query.limit])))
            return ids, {row.id: row for row in rows}

        ids, rows = self._read(work)
        return [batch_of(rows[each]) for each in ids[: query.limit] if each in rows], len(ids) > query.limit

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

    def retry(
        self,
        batch_id: str,
        *,
        now: int,
        generation: int,
        next_generation: int,
        file_changes: FileChanges,
        needs: Sequence[str] = (),
        room: Room | None = None,
        **fields: object,
    ) -> BatchRecord:
        """Make a finished batch of that generation `in_progress` again, as the next one, and return it.

        The marks of its end are cleared. Raises `Conflict` where it is not over or another retry came first,
        `NotFound` if a file that it `needs` was deleted, and `LimitReached` where the `room` is taken up.
        """
        statement = update(batches).where(
            batches.c.status.in_([str(state) for state in TERMINAL]), batches.c.generation == generation
        )
        cleared = {f"{state}_at": None for state in (*TERMINAL, BatchStatus.FINALIZING, BatchStatus.CANCELLING)}
        values = columns_of(
            {
                **cleared,
                "errors": None,
                "announced_at": None,
                "lease_owner": None,
                "lease_at": None,
                **fields,
                "generation": next_generation,
                "in_progress_at": now,
                "status": BatchStatus.IN_PROGRESS,
            }
        )
        return self._change(statement, batch_id, None, values, "cannot be retried", file_changes, room, needs)

    def delete_batch(self, batch_id: str, *, lease_s: float, now: float | None = None) -> BatchRecord:
        """Forget a batch and its output and error files, and return what it was.

        Raises `NotFound`, and `Conflict` while a runner has it.
        """
        at = database_time(self._engine) if now is None else now
        statement = (
            delete_from(batches)
            .where(batches.c.id == batch_id, is_free(now=at, lease_s=lease_s))
            .returning(*batches.c)
        )

        def work(connection: Connection) -> BatchRecord | None:
            row = connection.execute(statement).first()
            if row is None:
                return None
            batch = batch_of(row)
            own = [batch.output_file_id, batch.error_file_id]
            connection.execute(delete_from(files).where(files.c.id.in_([each for each in own if each])))
            forget_senders(connection, batch.id)
            for table in (listed_batches, idempotency_keys):
                connection.execute(delete_from(table).where(table.c.batch_id == batch.id))
            doom(connection, Doomed(prefix=layout.batch_prefix(batch.id), due_at=0))
            return batch

        gone = self._write(work)
        if gone is None:
            batch = self.get_batch(batch_id)
            raise Conflict(f"batch {batch_id} is being run ({batch.lease_owner}); delete it when that has ended")
        return gone


def open_records(settings: Settings) -> Records:
    """The records in the settings' database; raises as `open_database` does."""
    return Records(open_database(settings))

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
from batchline.models.status import TERMINAL_STATUSES, BatchStatus, allowed_from, timestamp_field
from batchline.storage.objects import layout
from batchline.storage.records.api_keys import KeyRecords
from batchline.storage.records.batch_counts import BatchCounts
from batchline.storage.records.batch_index import (
    list_batch_ids,
)
from batchline.storage.records.clock import database_time
from batchline.storage.records.database import open_database, upgrade_database
from batchline.storage.records.files import FileRecords, find_row
from batchline.storage.records.leases import LeaseRecords, batch_not_found
from batchline.storage.records.queries import (
    check_open_batch_limit,
    insert_batch,
    is_unleased,
    lock_file,
    schedule_deletion,
)
from batchline.storage.records.record_types import (
    BatchRecord,
    FileChanges,
    FileRecord,
    Idempotency,
    Lease,
    OpenBatchLimit,
    PendingDeletion,
    SyncedFile,
    batch_from_row,
    to_columns,
)
from batchline.storage.records.schema import IS_UNANNOUNCED, batch_index, batches, files, idempotency_keys
from batchline.storage.records.senders import forget_senders
from batchline.storage.records.synced_files import SyncedFiles, SyncedVersion, synced_file_id

__all__ = [
    "BatchRecord",
    "FileChanges",
    "FileRecord",
    "Idempotency",
    "Lease",
    "OpenBatchLimit",
    "PendingDeletion",
    "Records",
    "SyncedFile",
    "SyncedVersion",
    "batch_not_found",
    "open_records",
    "synced_file_id",
    "upgrade_database",
]


class Records(FileRecords, SyncedFiles, LeaseRecords):
    """Files and batches in a database that several processes share; may be used from any thread."""

    @property
    def api_keys(self) -> KeyRecords:
        """Members and keys, in the same database."""
        return KeyRecords(self._engine)

    @property
    def batch_counts(self) -> BatchCounts:
        """Figures of all batches together."""
        return BatchCounts(self._engine)

    def add_batch(
        self,
        record: BatchRecord,
        *,
        needs_input: bool = False,
        open_batch_limit: OpenBatchLimit | None = None,
        idempotency: Idempotency | None = None,
    ) -> BatchRecord:
        """Record a batch and return it, or the one that the same flow run or the same key has made before.

        With `needs_input`, raises `NotFound` where its input file has been deleted by then; `LimitReached` where
        the `room` is taken up.
        """

        def insert_rows(connection: Connection) -> None:
            if needs_input:
                lock_file(connection, record.input_file_id)
            if open_batch_limit is not None:
                check_open_batch_limit(connection, open_batch_limit)
            if idempotency is not None:
                values = {**msgspec.structs.asdict(idempotency), "batch_id": record.id}
                connection.execute(insert(idempotency_keys).values(**values))
            insert_batch(connection, record)

        try:
            self._run_write(insert_rows)
        except LimitReached:
            raise
        except Conflict:
            existing = self.find_batch_of_flow_run(record.flow_run_id) if record.flow_run_id else None
            existing = self.find_batch_by_key(idempotency) if idempotency else existing
            if existing is None:
                raise
            return existing
        return record

    def find_batch_by_key(self, idempotency: Idempotency) -> BatchRecord | None:
        """The batch that was made with that key, if one was; raises `InvalidInput` where another was asked for."""

        def find_key_and_batch(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            key_row = connection.execute(
                select(idempotency_keys).where(idempotency_keys.c.key == idempotency.key)
            ).first()
            return key_row, None if key_row is None else find_row(connection, batches, key_row.batch_id)

        key_row, row = self._run_read(find_key_and_batch)
        if key_row is None or row is None:
            return None
        if key_row.request != idempotency.request:
            raise InvalidInput(
                "this Idempotency-Key was used for another batch; use a new one for each batch",
                param="Idempotency-Key",
            )
        return batch_from_row(row)

    def get_batch(self, batch_id: str, *, member_id: str | None = None) -> BatchRecord:
        """The batch, if it is that member's, or whose ever where none is named; raises `NotFound`."""
        row = self._run_read(lambda connection: find_row(connection, batches, batch_id, member_id))
        if row is None:
            raise batch_not_found(batch_id)
        return batch_from_row(row)

    def find_batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """The batch that the flow run made, if it made one."""
        statement = select(batches).where(batches.c.flow_run_id == flow_run_id)
        row = self._run_read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_from_row(row)

    def find_last_batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """The batch that the flow run made or went on with, if it came to that."""
        batch = self.find_batch_of_flow_run(flow_run_id)
        if batch is not None:
            return batch
        statement = select(batches).where(batches.c.last_flow_run_id == flow_run_id).limit(1)
        row = self._run_read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_from_row(row)

    def record_flow_run(self, batch_id: str, flow_run_id: str) -> None:
        """Note which flow run has the batch now; does nothing to a batch that is gone."""
        statement = update(batches).where(batches.c.id == batch_id).values(last_flow_run_id=flow_run_id)
        self._run_write(lambda connection: connection.execute(statement))

    def list_unannounced(self, *, ended_before: int) -> list[BatchRecord]:
        """Return batches that a flow run had, that ended by then, and whose end is not announced."""
        is_terminal = batches.c.status.in_([str(state) for state in TERMINAL_STATUSES])
        statement = select(batches).where(IS_UNANNOUNCED, is_terminal).order_by(batches.c.id)
        rows = self._run_read(lambda connection: connection.execute(statement).all())
        return [batch for row in rows if (batch := batch_from_row(row)).ended_at <= ended_before]

    def mark_announced(self, batch_id: str, *, generation: int, now: int) -> None:
        """Note that the end of that generation of the batch is announced; does nothing to one that is retried."""
        is_terminal = batches.c.status.in_([str(state) for state in TERMINAL_STATUSES])
        statement = update(batches).where(
            batches.c.id == batch_id, batches.c.generation == generation, is_terminal
        )
        self._run_write(lambda connection: connection.execute(statement.values(announced_at=now)))

    def find_batch_of_file(self, file_id: str) -> BatchRecord | None:
        """The batch whose output or error file that is."""
        statement = select(batches).where(
            or_(batches.c.output_file_id == file_id, batches.c.error_file_id == file_id)
        )
        row = self._run_read(lambda connection: connection.execute(statement).first())
        return None if row is None else batch_from_row(row)

    def list_batches(self, query: ListBatchesQuery, *, now: int) -> BatchListResponse:
        """A page of batches as the API shows them; raises as `list_records` does."""
        records, has_more = self.list_records(query, now=now)
        page = [record.to_response(include_analytics=query.includes_analytics) for record in records]
        return BatchListResponse(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=has_more,
        )

    def list_records(self, query: ListBatchesQuery, *, now: int) -> tuple[list[BatchRecord], bool]:
        """A page of batches, and whether more follow; raises `NotFound` for a cursor that is no batch."""
        after = None if query.after is None else self.get_batch(query.after)

        def find_ids_and_rows(connection: Connection) -> tuple[list[str], dict[str, Row[Any]]]:
            ids = list_batch_ids(connection, query, after=after, now=now)
            rows = connection.execute(select(batches).where(batches.c.id.in_(ids[: query.limit])))
            return ids, {row.id: row for row in rows}

        ids, rows = self._run_read(find_ids_and_rows)
        return [batch_from_row(rows[batch_id]) for batch_id in ids[: query.limit] if batch_id in rows], len(
            ids
        ) > query.limit

    def change_status(
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
        timestamp = timestamp_field(target)
        values = to_columns({**fields, **({timestamp: now} if timestamp else {}), "status": target})
        allowed = [str(state) for state in allowed_from(target)]
        statement = update(batches).where(batches.c.status.in_(allowed))
        return self._update_batch(statement, batch_id, lease, values, f"cannot become {target}", file_changes)

    def retry(
        self,
        batch_id: str,
        *,
        now: int,
        generation: int,
        next_generation: int,
        file_changes: FileChanges,
        needed_file_ids: Sequence[str] = (),
        open_batch_limit: OpenBatchLimit | None = None,
        **fields: object,
    ) -> BatchRecord:
        """Make a finished batch of that generation `in_progress` again, as the next one, and return it.

        The marks of its end are cleared. Raises `Conflict` where it is not over or another retry came first,
        `NotFound` if a file that it `needs` was deleted, and `LimitReached` where the `room` is taken up.
        """
        statement = update(batches).where(
            batches.c.status.in_([str(state) for state in TERMINAL_STATUSES]), batches.c.generation == generation
        )
        cleared = {
            f"{state}_at": None for state in (*TERMINAL_STATUSES, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
        }
        values = to_columns(
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
        return self._update_batch(
            statement, batch_id, None, values, "cannot be retried", file_changes, open_batch_limit, needed_file_ids
        )

    def delete_batch(self, batch_id: str, *, lease_s: float, now: float | None = None) -> BatchRecord:
        """Forget a batch and its output and error files, and return what it was.

        Raises `NotFound`, and `Conflict` while a runner has it.
        """
        now_by_database = database_time(self._engine) if now is None else now
        statement = (
            delete_from(batches)
            .where(batches.c.id == batch_id, is_unleased(now=now_by_database, lease_s=lease_s))
            .returning(*batches.c)
        )

        def delete_rows(connection: Connection) -> BatchRecord | None:
            row = connection.execute(statement).first()
            if row is None:
                return None
            batch = batch_from_row(row)
            result_file_ids = [batch.output_file_id, batch.error_file_id]
            connection.execute(
                delete_from(files).where(files.c.id.in_([file_id for file_id in result_file_ids if file_id]))
            )
            forget_senders(connection, batch.id)
            for table in (batch_index, idempotency_keys):
                connection.execute(delete_from(table).where(table.c.batch_id == batch.id))
            schedule_deletion(connection, PendingDeletion(prefix=layout.batch_prefix(batch.id), due_at=0))
            return batch

        deleted = self._run_write(delete_rows)
        if deleted is None:
            batch = self.get_batch(batch_id)
            raise Conflict(f"batch {batch_id} is being run ({batch.lease_owner}); delete it when that has ended")
        return deleted


def open_records(settings: Settings) -> Records:
    """The records in the settings' database; raises as `open_database` does."""
    return Records(open_database(settings))

"""The records of files and batches; each change is one atomic transaction."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import delete as delete_from

from batchline.models.batches import ListBatchesQuery, PauseCode
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


PAUSABLE: Final = (str(BatchStatus.VALIDATING), str(BatchStatus.IN_PROGRESS))
"""Statuses in which a batch can be paused: those in which it sends requests, or will."""

NO_PAUSE: Final[Mapping[str, object]] = {"paused_at": None, "pause_code": None, "pause_message": None}
"""The columns of a batch that is not paused."""


class Records(FileRecords, SyncedFiles, LeaseRecords):
    """Files and batches in a database that several processes share; used from any thread."""

    @property
    def api_keys(self) -> KeyRecords:
        """Records of members and API keys in the same database."""
        return KeyRecords(self._engine)

    @property
    def batch_counts(self) -> BatchCounts:
        """Counts over all batches."""
        return BatchCounts(self._engine)

    def add_batch(
        self,
        record: BatchRecord,
        *,
        needs_input: bool = False,
        open_batch_limit: OpenBatchLimit | None = None,
        idempotency: Idempotency | None = None,
    ) -> BatchRecord:
        """Insert a batch and return it, or the batch that the same flow run or idempotency key made before.

        Raises `NotFound` if `needs_input` and the input file was deleted, and `LimitReached` if the member has
        the maximum of open batches.
        """

        def insert_rows(connection: Connection) -> None:
            if needs_input:
                lock_file(connection, record.input_file_id)
            if open_batch_limit is not None:
                check_open_batch_limit(connection, open_batch_limit)
            # The primary key makes one of two concurrent requests fail; it then returns the other's batch.
            if idempotency is not None:
                values = {**msgspec.structs.asdict(idempotency), "batch_id": record.id}
                connection.execute(insert(idempotency_keys).values(**values))
            insert_batch(connection, record)

        try:
            self._run_write(insert_rows)
        except LimitReached:  # a `Conflict`, but not of keys
            raise
        except Conflict:
            existing = self.find_batch_of_flow_run(record.flow_run_id) if record.flow_run_id else None
            existing = self.find_batch_by_key(idempotency) if idempotency else existing
            if existing is None:
                raise
            return existing
        return record

    def find_batch_by_key(self, idempotency: Idempotency) -> BatchRecord | None:
        """Return the batch made with the key, or None; raises `InvalidInput` if the request was another."""

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
        """Return the batch; if `member_id` is given, that member must own it. Raises `NotFound`."""
        row = self._run_read(lambda connection: find_row(connection, batches, batch_id, member_id))
        if row is None:
            raise batch_not_found(batch_id)
        return batch_from_row(row)

    def find_batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """Return the batch that the flow run created, or None."""
        return self._find_batch(batches.c.flow_run_id == flow_run_id)

    def find_last_batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """Return the batch that the flow run created or continued last, or None."""
        created = self.find_batch_of_flow_run(flow_run_id)
        return created or self._find_batch(batches.c.last_flow_run_id == flow_run_id)

    def find_batch_of_file(self, file_id: str) -> BatchRecord | None:
        """Return the batch that has this output or error file, or None."""
        return self._find_batch(or_(batches.c.output_file_id == file_id, batches.c.error_file_id == file_id))

    def _find_batch(self, condition: ColumnElement[bool]) -> BatchRecord | None:
        row = self._read_first(select(batches).where(condition).limit(1))
        return None if row is None else batch_from_row(row)

    def record_flow_run(self, batch_id: str, flow_run_id: str) -> None:
        """Record the flow run that runs the batch now; a deleted batch is ignored."""
        self._write(update(batches).where(batches.c.id == batch_id).values(last_flow_run_id=flow_run_id))

    def list_unannounced(self, *, ended_before: int) -> list[BatchRecord]:
        """Return batches that a flow run ran, that ended by `ended_before`, and whose end is not announced."""
        statement = select(batches).where(IS_UNANNOUNCED, batches.c.status.in_(TERMINAL_STATUSES))
        rows = self._read_all(statement.order_by(batches.c.id))
        return [batch for row in rows if (batch := batch_from_row(row)).ended_at <= ended_before]

    def mark_announced(self, batch_id: str, *, generation: int, now: int) -> None:
        """Record that the end of that generation was announced; a batch that was retried since is ignored."""
        is_this_end = (batches.c.generation == generation, batches.c.status.in_(TERMINAL_STATUSES))
        statement = update(batches).where(batches.c.id == batch_id, *is_this_end)
        self._write(statement.values(announced_at=now))

    def list_records(self, query: ListBatchesQuery, *, now: int) -> tuple[list[BatchRecord], bool]:
        """Return a page of batches, and True if more follow; raises `NotFound` for an unknown `after`."""
        after = None if query.after is None else self.get_batch(query.after)

        def find_ids_and_rows(connection: Connection) -> tuple[list[str], dict[str, Row[Any]]]:
            ids = list_batch_ids(connection, query, after=after, now=now)
            rows = connection.execute(select(batches).where(batches.c.id.in_(ids[: query.limit])))
            return ids, {row.id: row for row in rows}

        ids, rows = self._run_read(find_ids_and_rows)
        # A batch can be deleted between the two queries.
        page = [batch_from_row(rows[batch_id]) for batch_id in ids[: query.limit] if batch_id in rows]
        return page, len(ids) > query.limit

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
        """Change the batch's status, set its timestamp and the fields, and return the batch.

        `file_changes` are made in the same transaction. Raises `Conflict` if the current status does not allow it,
        and `LeaseLost` if the lease was lost.
        """
        timestamp = timestamp_field(target)
        # A batch that moves on after sending is paused no more.
        pause = {} if target is BatchStatus.IN_PROGRESS else NO_PAUSE
        values = to_columns({**pause, **fields, **({timestamp: now} if timestamp else {}), "status": target})
        # Checked in the UPDATE itself, so that of two concurrent changes only one succeeds.
        statement = update(batches).where(batches.c.status.in_(allowed_from(target)))
        return self._update_batch(statement, batch_id, lease, values, f"cannot become {target}", file_changes)

    def pause(self, batch_id: str, *, code: PauseCode, message: str) -> BatchRecord:
        """Pause a batch that is `validating` or `in_progress`, and return it; one that is paused stays as it is.

        Raises `Conflict` in any other status.
        """
        batch = self.get_batch(batch_id)
        if batch.paused_at is not None:
            return batch
        values = {
            "paused_at": int(self.now()),
            "pause_code": code,
            "pause_message": message,
            "pauses": batches.c.pauses + 1,
        }
        statement = update(batches).where(batches.c.status.in_(PAUSABLE), batches.c.paused_at.is_(None))
        try:
            return self._update_batch(statement, batch_id, None, values, "cannot be paused")
        except Conflict:
            # Two who pause a batch at the same time have both paused it.
            batch = self.get_batch(batch_id)
            if batch.paused_at is None:
                raise
            return batch

    def resume(self, batch_id: str) -> BatchRecord:
        """End the batch's pause and return it; its window ends later by the time of the pause.

        Raises `Conflict` if it is not paused.
        """
        # Not less than 0: the clock of the database may have been set back.
        paused_s = func.greatest(0, int(self.now()) - batches.c.paused_at)
        if self._engine.dialect.name == "sqlite":
            paused_s = func.max(0, int(self.now()) - batches.c.paused_at)
        values = {**NO_PAUSE, "expires_at": batches.c.expires_at + paused_s}
        statement = update(batches).where(batches.c.status.in_(PAUSABLE), batches.c.paused_at.is_not(None))
        return self._update_batch(statement, batch_id, None, values, "is not paused")

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
        """Set a finished batch of that generation to `in_progress` with the next generation, and return it.

        The fields of its end are cleared. Raises `Conflict` if it is not finished or another retry came first,
        `NotFound` if a needed file was deleted, and `LimitReached` if the member has the maximum of open batches.
        """
        statement = update(batches).where(
            batches.c.status.in_(TERMINAL_STATUSES), batches.c.generation == generation
        )
        cleared = {
            f"{state}_at": None for state in (*TERMINAL_STATUSES, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
        }
        # The epoch is not reset, so that runners of the old generation stay fenced off.
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
        """Delete a batch with its output and error files, schedule its objects for deletion, and return it.

        Raises `NotFound`, or `Conflict` if a runner has its lease.
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
            # In the same transaction: no crash leaves objects without a record.
            schedule_deletion(connection, PendingDeletion(prefix=layout.batch_prefix(batch.id), due_at=0))
            return batch

        deleted = self._run_write(delete_rows)
        if deleted is None:
            batch = self.get_batch(batch_id)
            raise Conflict(
                f"batch {batch_id} is being run by a process ({batch.lease_owner}); delete it when that has ended"
            )
        return deleted


def open_records(settings: Settings) -> Records:
    """Open the records in the configured database; raises as `open_database` does."""
    return Records(open_database(settings))

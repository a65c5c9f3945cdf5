"""Leases of batches, by which one runner at a time may change a batch; each change is one atomic statement."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Update, case, or_, select, update

from batchline.models.errors import Conflict, LeaseLost, NotFound
from batchline.models.status import ACTIVE_STATUSES
from batchline.storage.records.batch_index import INDEXED_FIELDS, update_index_row
from batchline.storage.records.clock import database_time
from batchline.storage.records.files import find_row
from batchline.storage.records.lease_owners import has_owner_ended
from batchline.storage.records.queries import (
    apply_file_changes,
    check_open_batch_limit,
    is_unleased,
    lock_file,
    restrict_to_lease,
)
from batchline.storage.records.record_types import BatchRecord, FileChanges, Lease, OpenBatchLimit, batch_from_row
from batchline.storage.records.schema import batches
from batchline.storage.records.senders import RUNNER_SENDER, SenderRecords, forget_senders


class LeaseRecords(SenderRecords):
    """Operations on leases; used from any thread."""

    def now(self) -> float:
        """Return the time of the database's clock, in Unix seconds, by which leases expire."""
        now = database_time(self._engine)
        return now if isinstance(now, float) else float(self._read_all(select(now))[0][0])

    def claim(self, batch_id: str, *, owner: str, lease_s: float, now: float | None = None) -> Lease:
        """Acquire the batch's lease at the time `now`, by default the database's.

        Raises `Conflict` if another owner's heartbeat is younger than `lease_s`, unless the owner was a process of
        this machine that has ended.
        """
        try:
            return self._try_claim(batch_id, owner, lease_s, now, dead=None)
        except Conflict:
            row = self._run_read(lambda connection: find_row(connection, batches, batch_id))
            if row is None or not self.has_runner_died(batch_from_row(row)):
                raise
            # Only from that owner: another process may have claimed the batch since it was read.
            return self._try_claim(batch_id, owner, lease_s, now, dead=row.lease_owner)

    def has_runner_died(self, batch: BatchRecord) -> bool:
        """Return True if the runner was a process of this machine that has ended, and had no other senders.

        Other senders continue for a while, and a new runner would send their requests in flight again.
        """
        if batch.lease_owner is None or not has_owner_ended(batch.lease_owner):
            return False
        return not self.read_sender_reports(batch.id, batch.epoch).keys() - {RUNNER_SENDER}

    def _try_claim(
        self, batch_id: str, owner: str, lease_s: float, now: float | None, *, dead: str | None
    ) -> Lease:
        now_by_database = database_time(self._engine) if now is None else now
        is_claimable = or_(
            batches.c.lease_owner.in_([owner, *([dead] if dead else [])]),
            is_unleased(now=now_by_database, lease_s=lease_s),
        )
        # The epoch fences the previous owner off: its later statements match no row.
        values = {"epoch": batches.c.epoch + 1, "lease_owner": owner, "lease_at": now_by_database}
        batch = self._update_batch(
            update(batches).where(is_claimable), batch_id, None, values, "is being run by another"
        )
        return Lease(batch_id, owner, batch.epoch)

    def heartbeat(
        self, lease: Lease, *, completed: int | None = None, failed: int | None = None, now: float | None = None
    ) -> BatchRecord:
        """Renew the lease at the time `now`, by default the database's, and store the counts.

        Returns the batch, which may have been cancelled or paused; raises `LeaseLost`.
        """
        counts = {"completed": completed, "failed": failed}
        # A late heartbeat must not overwrite the final counts.
        is_active = batches.c.status.in_(ACTIVE_STATUSES)
        new_counts = {
            name: case((is_active, count), else_=batches.c[name])
            for name, count in counts.items()
            if count is not None
        }
        values = {"lease_at": database_time(self._engine) if now is None else now, **new_counts}
        return self._update_batch(update(batches), lease.batch_id, lease, values, "cannot be kept")

    def release(self, lease: Lease) -> None:
        """Release the lease, so that it can be claimed at once; a lost lease is ignored."""
        statement = restrict_to_lease(update(batches), lease).values(lease_owner=None, lease_at=None)

        def release_and_forget_senders(connection: Connection) -> None:
            # Not if the lease was lost: the reports are then those of the new owner's senders.
            if connection.execute(statement).rowcount:
                forget_senders(connection, lease.batch_id)

        self._run_write(release_and_forget_senders)

    def _update_batch(
        self,
        statement: Update,
        batch_id: str,
        lease: Lease | None,
        values: Mapping[str, object],
        problem: str,
        file_changes: FileChanges | None = None,
        open_batch_limit: OpenBatchLimit | None = None,
        needed_file_ids: Sequence[str] = (),
    ) -> BatchRecord:
        guarded_statement = statement.where(batches.c.id == batch_id)
        if lease is not None:
            guarded_statement = restrict_to_lease(guarded_statement, lease)
        guarded_statement = guarded_statement.values(**values).returning(*batches.c)

        def update_and_read(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            if open_batch_limit is not None:
                check_open_batch_limit(connection, open_batch_limit)
            for file_id in sorted(needed_file_ids):  # in one order, so that two transactions cannot deadlock
                lock_file(connection, file_id)
            changed_row = connection.execute(guarded_statement).first()
            if changed_row is not None and file_changes is not None:
                apply_file_changes(connection, file_changes)
            if changed_row is not None and not INDEXED_FIELDS.isdisjoint(values):
                update_index_row(connection, batch_from_row(changed_row))
            return changed_row, changed_row if changed_row is not None else find_row(connection, batches, batch_id)

        # The current row, read in the same transaction, tells why nothing matched.
        changed_row, current_row = self._run_write(update_and_read)
        if changed_row is None:
            raise _to_change_error(batch_id, current_row, lease, problem)
        return batch_from_row(changed_row)


def batch_not_found(batch_id: str) -> NotFound:
    """Return the error for a batch that does not exist or is not visible to the caller."""
    return NotFound(f"there is no batch {batch_id}; see `batchline batches list`")


def _to_change_error(batch_id: str, row: Row[Any] | None, lease: Lease | None, problem: str) -> Exception:
    if row is None:
        return NotFound(f"there is no batch {batch_id}")
    batch = batch_from_row(row)
    if lease is not None and (batch.epoch, batch.lease_owner) != (lease.epoch, lease.owner):
        return LeaseLost(f"batch {batch_id} has been taken over by another runner ({batch.lease_owner or 'none'})")
    if problem.startswith("is being run"):
        return Conflict(
            f"batch {batch_id} {problem} process ({batch.lease_owner}); if that process is dead, try again when "
            "its lease has expired"
        )
    return Conflict(f"batch {batch_id} is {batch.status} and {problem}")

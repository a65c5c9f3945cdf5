"""Leases of batches: who may change one, and until when; each change one atomic statement."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, Update, case, or_, update

from batchline.models.errors import Conflict, LeaseLost, NotFound
from batchline.models.status import ACTIVE, BatchStatus
from batchline.storage.clock import DatabaseClock, database_time
from batchline.storage.file_records import row_of
from batchline.storage.listing import LISTED_FIELDS, list_again
from batchline.storage.owners import has_ended
from batchline.storage.rows import BatchRecord, FileChanges, Lease, Room, batch_of
from batchline.storage.schema import batches
from batchline.storage.senders import RUNNER, Senders, forget_senders
from batchline.storage.statements import apply_changes, check_room, is_free, leased, locked_file


class Leases(Senders):
    """Batches that one runner at a time may change; may be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._clock = DatabaseClock(engine)

    def now(self) -> float:
        """Return the time by the database's clock, in Unix seconds; leases are judged by it."""
        if self._clock.needs_measuring():
            self._read(self._clock.measure)
        return self._clock.now()

    def claim(self, batch_id: str, *, owner: str, lease_s: float, now: float | None = None) -> Lease:
        """Take the batch's lease at that time, by default the database's.

        Raises `Conflict` while another's heartbeat is younger than `lease_s`, unless that one was a process of
        this machine and has ended.
        """
        try:
            return self._claim(batch_id, owner, lease_s, now, dead=None)
        except Conflict:
            row = self._read(lambda connection: row_of(connection, batches, batch_id))
            if row is None or not self.has_died(batch_of(row)):
                raise
            return self._claim(batch_id, owner, lease_s, now, dead=row.lease_owner)

    def has_died(self, batch: BatchRecord) -> bool:
        """Return True if the batch's runner was a process of this machine that has ended, and no one sends for it.

        Processes that send for it go on for a while, and what they have in flight would be sent twice.
        """
        if batch.lease_owner is None or not has_ended(batch.lease_owner):
            return False
        return not self.sender_reports(batch.id, batch.epoch).keys() - {RUNNER}

    def _claim(self, batch_id: str, owner: str, lease_s: float, now: float | None, *, dead: str | None) -> Lease:
        at = database_time(self._engine) if now is None else now
        free = or_(batches.c.lease_owner.in_([owner, *([dead] if dead else [])]), is_free(now=at, lease_s=lease_s))
        values = {"epoch": batches.c.epoch + 1, "lease_owner": owner, "lease_at": at}
        batch = self._change(update(batches).where(free), batch_id, None, values, "is being run by another")
        return Lease(batch_id, owner, batch.epoch)

    def beat(
        self, lease: Lease, *, completed: int | None = None, failed: int | None = None, now: float | None = None
    ) -> BatchStatus:
        """Keep the lease, note the counts, and return the batch's state; raises `LeaseLost`.

        The heartbeat is of that time, by default the database's.
        """
        counts = {"completed": completed, "failed": failed}
        goes_on = batches.c.status.in_([str(state) for state in ACTIVE])  # a late heartbeat must not undo an end
        grown = {
            name: case((goes_on, count), else_=batches.c[name])
            for name, count in counts.items()
            if count is not None
        }
        values = {"lease_at": database_time(self._engine) if now is None else now, **grown}
        return self._change(update(batches), lease.batch_id, lease, values, "cannot be kept").status

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that another may take it at once; a lost one is let be."""
        statement = leased(update(batches), lease).values(lease_owner=None, lease_at=None)

        def work(connection: Connection) -> None:
            if connection.execute(statement).rowcount:
                forget_senders(connection, lease.batch_id)

        self._write(work)

    def _change(
        self,
        statement: Update,
        batch_id: str,
        lease: Lease | None,
        values: Mapping[str, object],
        problem: str,
        file_changes: FileChanges | None = None,
        room: Room | None = None,
        needs: Sequence[str] = (),
    ) -> BatchRecord:
        guarded = statement.where(batches.c.id == batch_id)
        if lease is not None:
            guarded = leased(guarded, lease)
        guarded = guarded.values(**values).returning(*batches.c)

        def work(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            if room is not None:
                check_room(connection, room)
            for file_id in sorted(needs):  # in one order, so that two never wait for each other
                locked_file(connection, file_id)
            changed = connection.execute(guarded).first()
            if changed is not None and file_changes is not None:
                apply_changes(connection, file_changes)
            if changed is not None and not LISTED_FIELDS.isdisjoint(values):
                list_again(connection, batch_of(changed))
            return changed, changed if changed is not None else row_of(connection, batches, batch_id)

        changed, present = self._write(work)
        if changed is None:
            raise _refusal(batch_id, present, lease, problem)
        return batch_of(changed)


def no_batch(batch_id: str) -> NotFound:
    """Return the error for a batch that does not exist or is not visible to the caller."""
    return NotFound(f"there is no batch {batch_id}; `batchline batches list` shows which there are")


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

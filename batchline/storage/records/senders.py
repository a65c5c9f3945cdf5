"""Records of the processes that send a batch's chunks for the runner that has its lease."""

import msgspec
from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as delete_from

from batchline.models.errors import LeaseLost
from batchline.models.status import BatchStatus
from batchline.storage.records.clock import database_time
from batchline.storage.records.schema import batches, senders
from batchline.storage.records.transactions import Transactions

RUNNER_SENDER = ""
"""The name by which the lease's own process speaks to the senders."""


class SharedLease(msgspec.Struct, frozen=True):
    """A lease as a sender sees it, and what all who share it have reported.

    Its last heartbeat is `age_s` old, by the database's clock.
    """

    age_s: float
    status: BatchStatus
    completed: int
    reports: dict[str, str]


class SenderRecords(Transactions):
    """What the processes that share the sending of a batch have reported under its lease's epoch."""

    def report_sender(self, batch_id: str, epoch: int, sender: str, report: str) -> SharedLease:
        """Put the sender's report in the place of its last; how the lease is, and what the others reported.

        Raises `LeaseLost` where the lease of that epoch is held no more.
        """
        own_row = (senders.c.batch_id == batch_id, senders.c.epoch == epoch, senders.c.sender == sender)
        values = {"batch_id": batch_id, "epoch": epoch, "sender": sender, "report": report}
        age_s = (database_time(self._engine) - batches.c.lease_at).label("age_s")
        active_lease = select(age_s, batches.c.status, batches.c.completed).where(
            batches.c.id == batch_id, batches.c.epoch == epoch, batches.c.lease_owner.is_not(None)
        )

        def store_report(connection: Connection) -> SharedLease | None:
            lease_row = connection.execute(active_lease).first()
            if lease_row is None:
                return None
            if not connection.execute(update(senders).where(*own_row).values(report=report)).rowcount:
                connection.execute(insert(senders).values(**values))
            reports = _read_reports(connection, batch_id, epoch)
            return SharedLease(lease_row.age_s, BatchStatus(lease_row.status), lease_row.completed, reports)

        shared_lease = self._run_write(store_report)
        if shared_lease is None:
            raise LeaseLost(f"batch {batch_id}: the run that ordered its chunks is over")
        return shared_lease

    def read_sender_reports(self, batch_id: str, epoch: int) -> dict[str, str]:
        """What each sender has reported last."""
        return self._run_read(lambda connection: _read_reports(connection, batch_id, epoch))


def _read_reports(connection: Connection, batch_id: str, epoch: int) -> dict[str, str]:
    statement = select(senders.c.sender, senders.c.report).where(
        senders.c.batch_id == batch_id, senders.c.epoch == epoch
    )
    return {row.sender: row.report for row in connection.execute(statement)}


def forget_senders(connection: Connection, batch_id: str) -> None:
    """Drop what was reported of the batch."""
    connection.execute(delete_from(senders).where(senders.c.batch_id == batch_id))

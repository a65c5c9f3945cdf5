"""Records of the processes that send chunks of a batch for the runner that holds its lease."""

import msgspec
from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as delete_from

from batchline.models.errors import LeaseLost
from batchline.models.status import BatchStatus
from batchline.storage.records.clock import database_time
from batchline.storage.records.schema import batches, senders
from batchline.storage.records.transactions import Transactions

RUNNER_SENDER = ""
"""Sender name under which the runner itself reports to the senders."""


class SharedLease(msgspec.Struct, frozen=True):
    """The state of a lease for its senders, with the last report of each sender.

    `age_s` is the age of the last heartbeat by the database's clock.
    """

    age_s: float
    status: BatchStatus
    is_paused: bool
    completed: int
    reports: dict[str, str]


class SenderRecords(Transactions):
    """Operations on the reports of senders, which belong to an epoch of the lease."""

    def report_sender(self, batch_id: str, epoch: int, sender: str, report: str) -> SharedLease:
        """Replace the sender's report, and return the state of the lease with all reports.

        Raises `LeaseLost` if the lease of that epoch was released or taken over.
        """
        own_row = (senders.c.batch_id == batch_id, senders.c.epoch == epoch, senders.c.sender == sender)
        values = {"batch_id": batch_id, "epoch": epoch, "sender": sender, "report": report}
        age_s = (database_time(self._engine) - batches.c.lease_at).label("age_s")
        active_lease = select(age_s, batches.c.status, batches.c.paused_at, batches.c.completed).where(
            batches.c.id == batch_id, batches.c.epoch == epoch, batches.c.lease_owner.is_not(None)
        )

        def store_report(connection: Connection) -> SharedLease | None:
            lease_row = connection.execute(active_lease).first()
            if lease_row is None:
                return None
            # UPDATE first: on PostgreSQL a failed INSERT would abort the transaction.
            if not connection.execute(update(senders).where(*own_row).values(report=report)).rowcount:
                connection.execute(insert(senders).values(**values))
            reports = _read_reports(connection, batch_id, epoch)
            return SharedLease(
                lease_row.age_s,
                BatchStatus(lease_row.status),
                lease_row.paused_at is not None,
                lease_row.completed,
                reports,
            )

        shared_lease = self._run_write(store_report)
        if shared_lease is None:
            raise LeaseLost(f"batch {batch_id}: the run that it sends for is over")
        return shared_lease

    def read_sender_reports(self, batch_id: str, epoch: int) -> dict[str, str]:
        """Return the last report of each sender, by name."""
        return self._run_read(lambda connection: _read_reports(connection, batch_id, epoch))


def _read_reports(connection: Connection, batch_id: str, epoch: int) -> dict[str, str]:
    statement = select(senders.c.sender, senders.c.report).where(
        senders.c.batch_id == batch_id, senders.c.epoch == epoch
    )
    return {row.sender: row.report for row in connection.execute(statement)}


def forget_senders(connection: Connection, batch_id: str) -> None:
    """Delete all reports on the batch."""
    connection.execute(delete_from(senders).where(senders.c.batch_id == batch_id))

"""Counts over all batches, for metrics and health checks."""

from sqlalchemy import false, func, select, true

from batchline.models.status import BatchStatus
from batchline.storage.records.schema import batch_index, batches
from batchline.storage.records.transactions import Transactions


class BatchCounts(Transactions):
    """Counts over all batches. Made by `Records.batch_counts`."""

    def count_by_status(self) -> dict[str, int]:
        """Return the number of batches by status, 0 included."""
        # The index has the exact status of finished batches only; active ones, which are few, need a join.
        is_over, state = batch_index.c.is_over, batch_index.c.state
        ended = select(state, func.count()).where(is_over == true()).group_by(state)
        active = select(batches.c.status, func.count()).join_from(
            batch_index, batches, batches.c.id == batch_index.c.batch_id
        )
        union = ended.union_all(active.where(is_over == false()).group_by(batches.c.status))
        counts = {str(name): count for name, count in self._read_all(union)}
        return {**dict.fromkeys(map(str, BatchStatus), 0), **counts}

    def oldest_waiting_at(self) -> int | None:
        """Return when the oldest waiting batch was created, in Unix seconds; None if none waits to be sent."""
        is_waiting = batches.c.status == BatchStatus.VALIDATING, batch_index.c.is_over == false()
        statement = select(func.min(batches.c.created_at)).join_from(
            batch_index, batches, batches.c.id == batch_index.c.batch_id
        )
        return self._run_read(lambda connection: connection.execute(statement.where(*is_waiting)).scalar())

    def check_connection(self) -> None:
        """Raise `StorageFault` if the database does not answer."""
        self._read_first(select(1))

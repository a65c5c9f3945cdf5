"""Figures of all batches together, for whoever watches over them."""

from sqlalchemy import false, func, select, true

from batchline.models.status import BatchStatus
from batchline.storage.records.schema import batch_index, batches
from batchline.storage.records.transactions import Transactions


class BatchCounts(Transactions):
    """What the batches on record come to. Made by `Records.overview`."""

    def count_by_status(self) -> dict[str, int]:
        """How many batches are in each state."""
        is_over, state = batch_index.c.is_over, batch_index.c.state
        ended = select(state, func.count()).where(is_over == true()).group_by(state)
        active = select(batches.c.status, func.count()).join_from(
            batch_index, batches, batches.c.id == batch_index.c.batch_id
        )
        union = ended.union_all(active.where(is_over == false()).group_by(batches.c.status))
        rows = self._run_read(lambda connection: connection.execute(union).all())
        return {**dict.fromkeys(map(str, BatchStatus), 0), **{str(name): count for name, count in rows}}

    def oldest_waiting_at(self) -> int | None:
        """When the oldest batch was made that nobody has begun to send; none where none waits."""
        is_waiting = batches.c.status == BatchStatus.VALIDATING, batch_index.c.is_over == false()
        statement = select(func.min(batches.c.created_at)).join_from(
            batch_index, batches, batches.c.id == batch_index.c.batch_id
        )
        return self._run_read(lambda connection: connection.execute(statement.where(*is_waiting)).scalar())

    def check_connection(self) -> None:
        """Raise `StorageFault` where the database does not answer."""
        self._run_read(lambda connection: connection.execute(select(1)).all())

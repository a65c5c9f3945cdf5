"""Figures of all batches together, for whoever watches over them."""

from sqlalchemy import false, func, select, true

from batchline.models.status import BatchStatus
from batchline.storage.schema import batches, listed_batches
from batchline.storage.transactions import Transactions


class Overview(Transactions):
    """What the batches on record come to. Made by `Records.overview`."""

    def states(self) -> dict[str, int]:
        """How many batches are in each state."""
        is_over, state = listed_batches.c.is_over, listed_batches.c.state
        ended = select(state, func.count()).where(is_over == true()).group_by(state)
        active = select(batches.c.status, func.count()).join_from(
            listed_batches, batches, batches.c.id == listed_batches.c.batch_id
        )
        both = ended.union_all(active.where(is_over == false()).group_by(batches.c.status))
        rows = self._read(lambda connection: connection.execute(both).all())
        return {**dict.fromkeys(map(str, BatchStatus), 0), **{str(name): count for name, count in rows}}

    def oldest_waiting_at(self) -> int | None:
        """When the oldest batch was made that nobody has begun to send; none where none waits."""
        waiting = batches.c.status == BatchStatus.VALIDATING, listed_batches.c.is_over == false()
        statement = select(func.min(batches.c.created_at)).join_from(
            listed_batches, batches, batches.c.id == listed_batches.c.batch_id
        )
        return self._read(lambda connection: connection.execute(statement.where(*waiting)).scalar())

    def check(self) -> None:
        """Raise `StorageFault` where the database does not answer."""
        self._read(lambda connection: connection.execute(select(1)).all())

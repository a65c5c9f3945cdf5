"""Which batches a listing shows, as one SQL statement."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import TERMINAL
from batchline.models.status import BatchStatus as S
from batchline.storage.schema import batches

if TYPE_CHECKING:
    from batchline.storage.records import BatchRecord

_SIMPLE = {
    "in_progress": (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING),
    "completed": (S.COMPLETED,),
    "failed": (S.FAILED,),
    "cancelled": (S.CANCELLING, S.CANCELLED),
}


def list_statement(query: ListBatchesQuery, *, after: "BatchRecord | None", now: int) -> Select[Any]:
    """The batches that the query asks for, newest first, behind the cursor; not limited yet."""
    over = case((batches.c.status.in_([str(state) for state in TERMINAL]), 1), else_=0)
    statement = select(batches).where(*_filters(query, now))
    if query.active_first:
        statement = statement.order_by(over, batches.c.id.desc())
    else:
        statement = statement.order_by(batches.c.id.desc())
    if after is None:
        return statement
    if not query.active_first:
        return statement.where(batches.c.id < after.id)
    group = int(after.status in TERMINAL)
    return statement.where(or_(over > group, and_(over == group, batches.c.id < after.id)))


def _filters(query: ListBatchesQuery, now: int) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if query.search:
        found.append(_matches(query.search))
    if query.status == "expired":
        found.append(_late(now))
    elif query.status is not None:
        found.append(batches.c.status.in_([str(state) for state in _SIMPLE[query.status]]))
    if query.created_after is not None:
        found.append(batches.c.created_at >= query.created_after.timestamp())
    if query.created_before is not None:
        found.append(batches.c.created_at <= query.created_before.timestamp())
    if query.member_id is not None:
        found.append(batches.c.member_id == str(query.member_id))
    return found


def _matches(search: str) -> ColumnElement[bool]:
    """Part of the id, the input's filename or the metadata, whatever the case."""
    wanted = search.lower()
    columns = (batches.c.id, batches.c.input_filename, batches.c["metadata"])
    return or_(*(func.lower(column).contains(wanted, autoescape=True) for column in columns))


def _late(now: int) -> ColumnElement[bool]:
    """Expired, overdue, or finished past the deadline."""
    ended = func.coalesce(batches.c.completed_at, batches.c.failed_at, batches.c.cancelled_at)
    active = batches.c.status.notin_([str(state) for state in TERMINAL])
    return or_(
        batches.c.status == str(S.EXPIRED),
        and_(active, batches.c.expires_at < now),
        ended > batches.c.expires_at,
    )

"""Lists of batches and files: the narrow row that is kept of each batch, and the statements that read a page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    desc,
    false,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import TERMINAL
from batchline.models.status import BatchStatus as S
from batchline.storage.rows import BatchRecord, FileRecord
from batchline.storage.schema import files, listed_batches
from batchline.storage.search import contains, folded, is_storable, search_text

_IN_PROGRESS: Final = (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_Condition = ColumnElement[bool]
_columns = listed_batches.c
_is_active: Final = _columns.is_over == false()

_SHOWN: Final[Mapping[str | None, tuple[_Condition | None, _Condition | None]]] = {
    None: (_is_active, _columns.is_over == true()),
    "in_progress": (_columns.state == S.IN_PROGRESS, None),
    "completed": (None, _columns.state == S.COMPLETED),
    "failed": (None, _columns.state == S.FAILED),
    "cancelled": (_columns.state == S.CANCELLING, _columns.state == S.CANCELLED),
    "expired": (and_(_is_active, _columns.expires_at < bindparam("now")), _columns.is_late == true()),
}
"""The batches that each status filter shows: unfinished and finished ones, each in the order of one index."""

LISTED_FIELDS: Final = frozenset(
    {"status", "created_at", "expires_at", "member_id", "input_filename", "metadata"}
    | {f"{state}_at" for state in TERMINAL}
)
"""The fields of a batch that its row in the table of listed batches follows from."""


def listed_row(record: BatchRecord) -> dict[str, object]:
    """The batch's row in the table of listed batches."""
    return {
        "batch_id": record.id,
        "created_at": record.created_at,
        "state": S.IN_PROGRESS if record.status in _IN_PROGRESS else record.status,
        "is_over": record.status in TERMINAL,
        "is_late": _is_late(record),
        "expires_at": record.expires_at,
        "member_id": record.member_id,
        "search_text": search_text(record.id, record.input_filename, record.metadata),
    }


def _is_late(record: BatchRecord) -> bool:
    if record.status is S.EXPIRED:
        return True
    return record.status in TERMINAL and record.ended_at > record.expires_at


def list_again(connection: Connection, record: BatchRecord) -> None:
    """Let the batch's row in the table of listed batches follow the batch."""
    connection.execute(
        update(listed_batches).where(listed_batches.c.batch_id == record.id).values(**listed_row(record))
    )


def listed_ids(
    connection: Connection, query: ListBatchesQuery, *, after: BatchRecord | None, now: int
) -> list[str]:
    """Return the ids of the page's batches in their order, and one more if more batches follow."""
    wanted = folded(query.search or "")
    if not is_storable(wanted):
        return []
    found: list[str] = []
    for parts, cursor in _groups(query, after):
        bounds = _bounds(query, wanted, after=cursor)
        statement = _newest_ids(parts, bounds, most=query.limit + 1 - len(found))
        found += connection.execute(statement, {"now": now}).scalars()
        if len(found) > query.limit:
            break
    return found


def _groups(
    query: ListBatchesQuery, after: BatchRecord | None
) -> list[tuple[Sequence[_Condition], BatchRecord | None]]:
    """Return the groups to list one after another: the parts of each, and the cursor if it is in the group."""
    active, over = _SHOWN[query.status]
    if not query.active_first:
        parts = (active, over) if query.status else (true(),)
        return [([part for part in parts if part is not None], after)]
    is_over = after is not None and after.status in TERMINAL
    groups: list[tuple[Sequence[_Condition], BatchRecord | None]] = []
    if active is not None and not is_over:
        groups.append(([active], after))
    if over is not None:
        groups.append(([over], after if is_over else None))
    return groups


def _bounds(query: ListBatchesQuery, wanted: str, *, after: BatchRecord | None) -> list[_Condition]:
    """Return the conditions on time, member and text; of the upper bounds of time only the lower one."""
    bounds: list[_Condition] = []
    newest = None if query.created_before is None else _second(query.created_before)
    if after is not None and (newest is None or after.created_at <= newest):
        place = tuple_(literal(after.created_at, BigInteger), literal(after.id))
        bounds.append(tuple_(_columns.created_at, _columns.batch_id) < place)
    elif newest is not None:
        bounds.append(_columns.created_at <= newest)
    if query.created_after is not None:
        bounds.append(_columns.created_at >= _second(query.created_after, up=True))
    if query.member_id is not None:
        bounds.append(_columns.member_id == str(query.member_id))
    if wanted:
        bounds.append(contains(_columns.search_text, wanted))
    return bounds


def _second(moment: datetime, *, up: bool = False) -> int:
    """Return the whole Unix second at or before the moment, or at or after it; without a zone it is UTC."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return -(-since // timedelta(seconds=1)) if up else since // timedelta(seconds=1)


def _newest_ids(
    parts: Sequence[_Condition], bounds: Sequence[_Condition], *, most: int
) -> Select[Any] | CompoundSelect[Any]:
    """Return the statement for the newest ids of all parts, each of which is read in the order of its index."""
    shown = select(_columns.batch_id, _columns.created_at).where(*bounds)
    order: list[ColumnElement[Any]] = [desc("created_at"), desc("batch_id")]
    # A literal, because PostgreSQL caches a plan that suits a page only if it knows how few rows are wanted.
    limit = literal_column(str(most), Integer)
    each = [shown.where(part).order_by(*order).limit(limit) for part in parts]
    if len(each) == 1:
        return each[0]
    return union_all(*(select(one.subquery()) for one in each)).order_by(*order).limit(limit)


def files_statement(
    *, after: FileRecord | None, purpose: str | None, search: str | None, order: str, member_id: str | None
) -> Select[Any]:
    """The files that are all of what is asked, newest first or (`asc`) last, behind the cursor."""
    key = tuple_(files.c.created_at, files.c.id)
    statement = select(files)
    if purpose is not None:
        statement = statement.where(files.c.purpose == purpose)
    if member_id is not None:
        statement = statement.where(files.c.member_id == member_id)
    if search:
        statement = statement.where(
            files.c.filename.icontains(search, autoescape=True) if is_storable(search) else false()
        )
    if after is not None:
        place = tuple_(literal(after.created_at), literal(after.id))
        statement = statement.where(key > place if order == "asc" else key < place)
    columns = (files.c.created_at, files.c.id)
    return statement.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))

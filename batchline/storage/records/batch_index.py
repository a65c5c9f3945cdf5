"""Lists of batches and files: the index row of each batch, and the queries for a page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    and_,
    asc,
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
from batchline.models.status import TERMINAL_STATUSES
from batchline.models.status import BatchStatus as S
from batchline.storage.records.record_types import BatchRecord, FileRecord
from batchline.storage.records.schema import batch_index, files
from batchline.storage.records.search import casefolded, contains, is_storable, search_text

_IN_PROGRESS: Final = (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_Condition = ColumnElement[bool]
_columns = batch_index.c
_is_active: Final = _columns.is_over == false()

_STATUS_FILTERS: Final[Mapping[str | None, tuple[_Condition | None, _Condition | None]]] = {
    None: (_is_active, _columns.is_over == true()),
    "in_progress": (_columns.state == S.IN_PROGRESS, None),
    "completed": (None, _columns.state == S.COMPLETED),
    "failed": (None, _columns.state == S.FAILED),
    "cancelled": (_columns.state == S.CANCELLING, _columns.state == S.CANCELLED),
    # The window of a paused batch stands still.
    "expired": (
        and_(_is_active, _columns.is_paused == false(), _columns.expires_at < bindparam("now")),
        _columns.is_late == true(),
    ),
}
"""Conditions of each status filter, for unfinished and finished batches; one index serves each condition."""

INDEXED_FIELDS: Final = frozenset(
    {"status", "created_at", "expires_at", "member_id", "input_filename", "metadata", "paused_at"}
    | {f"{state}_at" for state in TERMINAL_STATUSES}
)
"""Fields of a batch on which its index row depends."""


def index_row(record: BatchRecord) -> dict[str, object]:
    """Return the columns of the batch's index row."""
    is_over = record.status in TERMINAL_STATUSES
    return {
        "batch_id": record.id,
        "created_at": record.created_at,
        "state": S.IN_PROGRESS if record.status in _IN_PROGRESS else record.status,
        "is_over": is_over,
        "is_late": record.status is S.EXPIRED or (is_over and record.ended_at > record.expires_at),
        "is_paused": record.paused_at is not None,
        "expires_at": record.expires_at,
        "member_id": record.member_id,
        "search_text": search_text(record.id, record.input_filename, record.metadata),
    }


def update_index_row(connection: Connection, record: BatchRecord) -> None:
    """Update the batch's index row."""
    connection.execute(update(batch_index).where(batch_index.c.batch_id == record.id).values(**index_row(record)))


def list_batch_ids(
    connection: Connection, query: ListBatchesQuery, *, after: BatchRecord | None, now: int
) -> list[str]:
    """Return the ids of the page's batches in their order, and one more if more batches follow."""
    folded_search = casefolded(query.search or "")
    if not is_storable(folded_search):
        return []
    ids: list[str] = []
    order: list[ColumnElement[Any]] = [desc("created_at"), desc("batch_id")]
    for parts, cursor in _condition_groups(query, after):
        bounds = _common_conditions(query, folded_search, after=cursor)
        id_rows = select(_columns.batch_id, _columns.created_at).where(*bounds)
        # A literal, because PostgreSQL caches a plan that suits a page only if it knows how few rows are wanted.
        limit = literal_column(str(query.limit + 1 - len(ids)), Integer)
        # Each part is read in the order of its index.
        selects = [id_rows.where(part).order_by(*order).limit(limit) for part in parts]
        union = union_all(*(select(rows.subquery()) for rows in selects)).order_by(*order).limit(limit)
        ids += connection.execute(selects[0] if len(selects) == 1 else union, {"now": now}).scalars()
        if len(ids) > query.limit:
            break
    return ids


def _condition_groups(
    query: ListBatchesQuery, after: BatchRecord | None
) -> list[tuple[Sequence[_Condition], BatchRecord | None]]:
    """Return the groups to list in turn: the conditions of each, and the cursor if it is in the group."""
    active, finished = _STATUS_FILTERS[query.status]
    if not query.active_first:
        parts = (active, finished) if query.status else (true(),)
        return [([part for part in parts if part is not None], after)]
    is_over = after is not None and after.status in TERMINAL_STATUSES
    groups: list[tuple[Sequence[_Condition], BatchRecord | None]] = []
    if active is not None and not is_over:
        groups.append(([active], after))
    if finished is not None:
        groups.append(([finished], after if is_over else None))
    return groups


def _common_conditions(
    query: ListBatchesQuery, folded_search: str, *, after: BatchRecord | None
) -> list[_Condition]:
    """Return the conditions on pause, time, member and text."""
    bounds: list[_Condition] = []
    if query.paused is not None:
        # Written out, not bound: the index of the paused is found by the text of its condition.
        bounds.append(_columns.is_paused == (true() if query.paused else false()))
    newest = None if query.created_before is None else _to_seconds(query.created_before)
    # Only the lower of the two upper bounds: with both, the database could start the index scan at the wrong one.
    if after is not None and (newest is None or after.created_at <= newest):
        cursor = tuple_(literal(after.created_at, BigInteger), literal(after.id))
        bounds.append(tuple_(_columns.created_at, _columns.batch_id) < cursor)
    elif newest is not None:
        bounds.append(_columns.created_at <= newest)
    if query.created_after is not None:
        bounds.append(_columns.created_at >= _to_seconds(query.created_after, round_up=True))
    if query.member_id is not None:
        bounds.append(_columns.member_id == str(query.member_id))
    if folded_search:
        bounds.append(contains(_columns.search_text, folded_search))
    return bounds


def _to_seconds(time: datetime, *, round_up: bool = False) -> int:
    """Return the moment in whole Unix seconds, rounded down unless `round_up`; without a time zone it is UTC."""
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return -(-since // timedelta(seconds=1)) if round_up else since // timedelta(seconds=1)


def files_query(
    *, after: FileRecord | None, purpose: str | None, search: str | None, order: str, member_id: str | None
) -> Select[Any]:
    """Return the query for files that match all filters, after the cursor; `order` is by age, "asc" or "desc"."""
    sort_key = tuple_(files.c.created_at, files.c.id)
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
        cursor = tuple_(literal(after.created_at), literal(after.id))
        statement = statement.where(sort_key > cursor if order == "asc" else sort_key < cursor)
    direction = asc if order == "asc" else desc
    return statement.order_by(direction(files.c.created_at), direction(files.c.id))

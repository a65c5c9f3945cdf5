"""Which batches and files a listing shows: what is kept of each batch for that, and how it is asked for."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Select,
    and_,
    desc,
    false,
    func,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import ACTIVE, TERMINAL
from batchline.models.status import BatchStatus as S
from batchline.storage.rows import BatchRecord, FileRecord
from batchline.storage.schema import batches, files, listed_batches
from batchline.storage.search import (
    contains,
    few_candidates,
    folded,
    is_storable,
    plan_each_search,
    search_text,
)

LATE: Final = " late"
_MAY_BE_LATE: Final = (S.COMPLETED, S.FAILED, S.CANCELLED)
_ENDED_LATE: Final = tuple(state + LATE for state in _MAY_BE_LATE)

_ACTIVE: Final = tuple(sorted(ACTIVE))
_OVER: Final = (*sorted(TERMINAL), *_ENDED_LATE)
_SHOWN: Final = {
    "in_progress": (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING),
    "completed": (S.COMPLETED, S.COMPLETED + LATE),
    "failed": (S.FAILED, S.FAILED + LATE),
    "cancelled": (S.CANCELLING, S.CANCELLED, S.CANCELLED + LATE),
    "expired": (*_ACTIVE, S.EXPIRED, *_ENDED_LATE),
}
"""The listed states behind each status filter; of the active ones, `expired` shows what is overdue."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

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
        "state": _listed_state(record),
        "expires_at": record.expires_at,
        "member_id": record.member_id,
        "search_text": search_text(record.id, record.input_filename, record.metadata),
    }


def _listed_state(record: BatchRecord) -> str:
    late = record.status in _MAY_BE_LATE and record.ended_at > record.expires_at
    return record.status + LATE if late else str(record.status)


def list_again(connection: Connection, record: BatchRecord) -> None:
    """Let the batch's row in the table of listed batches follow the batch."""
    connection.execute(
        update(listed_batches).where(listed_batches.c.batch_id == record.id).values(**listed_row(record))
    )


_Columns = ReadOnlyColumnCollection[str, Any]


def shown_columns(query: ListBatchesQuery) -> list[Column[Any]]:
    """The columns of batches that the page shows: all, but for analytics that the query does not include."""
    included = (query.include or "").split(",")
    return [column for column in batches.c if column.name != "analytics" or "analytics" in included]


class _Group(NamedTuple):
    """Batches that are listed in one order: all, or those in some states, all `over` or none where that is set."""

    states: Sequence[str] | None = None
    over: bool | None = None


def listed_ids(
    connection: Connection, query: ListBatchesQuery, *, after: BatchRecord | None, now: int
) -> list[str]:
    """The ids of the page's batches in their order, with one more where more follow."""
    wanted = folded(query.search or "")
    if not is_storable(wanted):
        return []
    source, at_once = _source(connection, wanted)
    found: list[str] = []
    for group in _groups(query, after):
        conditions = _conditions(query, source.c, after=after if _holds(group, after) else None)
        if wanted:
            conditions.append(contains(connection, source.c.search_text, wanted))
        states = [_in_state(state, source.c, query, now) for state in group.states or ()]
        if at_once:
            statement: Select[Any] | CompoundSelect[Any] = _at_once(source, states, conditions)
        else:
            statement = _merged(connection, source, states, conditions)
        found += connection.execute(statement.limit(query.limit + 1 - len(found))).scalars()
        if len(found) > query.limit:
            break
    return found


def _source(connection: Connection, wanted: str) -> tuple[FromClause, bool]:
    """Where to look, and whether all states at once.

    The states' indexes lead through batches in their order until the page is full. Where an index finds the text,
    its finds are sorted instead, for which one look has to be enough.
    """
    if not wanted:
        return listed_batches, False
    if connection.dialect.name == "postgresql":
        plan_each_search(connection)
        return listed_batches, True
    few = few_candidates(connection, wanted)
    return (listed_batches, False) if few is None else (few, True)


def _groups(query: ListBatchesQuery, after: BatchRecord | None) -> list[_Group]:
    """What is listed, one group behind the other, but for what is before the cursor's."""
    shown = None if query.status is None else _SHOWN[query.status]
    if not query.active_first:
        return [_Group(shown)]
    groups = [
        _Group([state for state in states if shown is None or state in shown], over)
        for over, states in ((False, _ACTIVE), (True, _OVER))
        if over or after is None or after.status in ACTIVE
    ]
    return [group for group in groups if group.states]


def _holds(group: _Group, batch: BatchRecord | None) -> bool:
    return batch is not None and group.over in {None, batch.status in TERMINAL}


def _conditions(
    query: ListBatchesQuery, columns: _Columns, *, after: BatchRecord | None
) -> list[ColumnElement[bool]]:
    """What batches have to be but for their state and their texts, with as few bounds of time as will do."""
    found: list[ColumnElement[bool]] = []
    newest = None if query.created_before is None else _second(query.created_before)
    if after is not None and (newest is None or after.created_at <= newest):
        found.append(tuple_(columns.created_at, columns.batch_id) < (after.created_at, after.id))
    elif newest is not None:
        found.append(columns.created_at <= newest)
    if query.created_after is not None:
        found.append(columns.created_at >= _second(query.created_after, up=True))
    if query.member_id is not None:
        found.append(columns.member_id == str(query.member_id))
    return found


def _second(moment: datetime, *, up: bool = False) -> int:
    """The whole Unix second at or before that moment, or behind it; it is in UTC where it names no zone."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return -(-since // timedelta(seconds=1)) if up else since // timedelta(seconds=1)


def _in_state(state: str, columns: _Columns, query: ListBatchesQuery, now: int) -> ColumnElement[bool]:
    is_in = columns.state == state
    return and_(is_in, columns.expires_at < now) if query.status == "expired" and state in _ACTIVE else is_in


def _at_once(
    source: FromClause, states: Sequence[ColumnElement[bool]], conditions: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    chosen = select(source.c.batch_id).where(*conditions, or_(*states) if states else true())
    return chosen.order_by(source.c.created_at.desc(), source.c.batch_id.desc())


def _merged(
    connection: Connection,
    source: FromClause,
    states: Sequence[ColumnElement[bool]],
    conditions: Sequence[ColumnElement[bool]],
) -> Select[Any] | CompoundSelect[Any]:
    """The same, each state looked through by itself, in the order of its index."""
    if len(states) < 2:
        return _at_once(source, states, conditions)
    each = (select(source.c.batch_id, source.c.created_at).where(state, *conditions) for state in states)
    merged = union_all(*each)
    # SQLite merges what comes in order only where it is the whole statement, PostgreSQL only where it is not.
    if connection.dialect.name == "sqlite":
        return merged.order_by(desc("created_at"), desc("batch_id"))
    part = merged.subquery("merged")
    return select(part.c.batch_id).order_by(part.c.created_at.desc(), part.c.batch_id.desc())


def files_statement(
    *, after: FileRecord | None, purpose: str | None, search: str | None, order: str
) -> Select[Any]:
    """The files of that purpose whose name has that in it, newest first or (`asc`) last, behind the cursor."""
    key = tuple_(files.c.created_at, files.c.id)
    statement = select(files)
    if purpose is not None:
        statement = statement.where(files.c.purpose == purpose)
    if search:
        statement = statement.where(_is_named(search) if is_storable(search) else false())
    if after is not None:
        place = tuple_(after.created_at, after.id)
        statement = statement.where(key > place if order == "asc" else key < place)
    columns = (files.c.created_at, files.c.id)
    return statement.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))


def _is_named(part: str) -> ColumnElement[bool]:
    escaped = re.sub("([/%_])", r"/\1", part)
    return func.lower(files.c.filename).like(func.lower(f"%{escaped}%"), escape="/")

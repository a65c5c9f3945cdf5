"""Which batches a listing shows, as one SQL statement."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from sqlalchemy import Column, ColumnElement, Select, and_, case, false, func, or_, select, tuple_

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import TERMINAL
from batchline.models.status import BatchStatus as S
from batchline.storage.schema import batches, files

if TYPE_CHECKING:
    from batchline.storage.records import BatchRecord, FileRecord

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


def files_statement(
    *, after: "FileRecord | None", purpose: str | None, search: str | None, order: str
) -> Select[Any]:
    """The files of that purpose whose name has that in it, newest first or (`asc`) last, behind the cursor."""
    key = tuple_(files.c.created_at, files.c.id)
    statement = select(files)
    if purpose is not None:
        statement = statement.where(files.c.purpose == purpose)
    if search:
        statement = statement.where(_contains(files.c.filename, search) if "\0" not in search else false())
    if after is not None:
        place = tuple_(after.created_at, after.id)
        statement = statement.where(key > place if order == "asc" else key < place)
    columns = (files.c.created_at, files.c.id)
    return statement.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))


def _filters(query: ListBatchesQuery, now: int) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if query.search:
        found.append(_matches(query.search))
    if query.status == "expired":
        found.append(_late(now))
    elif query.status is not None:
        found.append(batches.c.status.in_([str(state) for state in _SIMPLE[query.status]]))
    if query.created_after is not None:
        found.append(batches.c.created_at >= _unix(query.created_after))
    if query.created_before is not None:
        found.append(batches.c.created_at <= _unix(query.created_before))
    if query.member_id is not None:
        found.append(batches.c.member_id == str(query.member_id))
    return found


def _unix(moment: datetime) -> float:
    """Unix seconds of that moment, which is in UTC where it names no zone."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _matches(search: str) -> ColumnElement[bool]:
    """Part of the id, the input's filename or the metadata, whatever the case."""
    found = [_contains(batches.c["metadata"], to_json(search).decode()[1:-1])]  # as it is written there
    if "\0" not in search:  # no text column can hold one, and PostgreSQL does not even take it as a question
        found += [_contains(batches.c.id, search), _contains(batches.c.input_filename, search)]
    return or_(*found)


def _contains(column: Column[Any], text: str) -> ColumnElement[bool]:
    escaped = re.sub("([/%_])", r"/\1", text)
    return func.lower(column).like(func.lower(f"%{escaped}%"), escape="/")


def _late(now: int) -> ColumnElement[bool]:
    """Expired, overdue, or finished past the deadline."""
    ended = func.coalesce(batches.c.completed_at, batches.c.failed_at, batches.c.cancelled_at)
    active = batches.c.status.notin_([str(state) for state in TERMINAL])
    return or_(
        batches.c.status == str(S.EXPIRED),
        and_(active, batches.c.expires_at < now),
        ended > batches.c.expires_at,
    )

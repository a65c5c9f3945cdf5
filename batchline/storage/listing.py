"""Which batches and files a listing shows: what is kept of each batch for that, and how it is asked for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    desc,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import TERMINAL
from batchline.models.status import BatchStatus as S
from batchline.storage.rows import BatchRecord, FileRecord
from batchline.storage.schema import files, listed_batches
from batchline.storage.search import (
    contains,
    few_candidates,
    folded,
    is_storable,
    plan_each_search,
    search_text,
)

_IN_PROGRESS: Final = (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING)


class _Part(NamedTuple):
    """Batches that one index leads through in their order: all, or those of which what is set is true."""

    state: str | None = None
    is_over: bool | None = None
    is_late: bool | None = None
    is_overdue: bool = False


_SHOWN: Final[Mapping[str | None, tuple[_Part | None, _Part | None]]] = {
    None: (_Part(is_over=False), _Part(is_over=True)),
    "in_progress": (_Part(state=S.IN_PROGRESS), None),
    "completed": (None, _Part(state=S.COMPLETED)),
    "failed": (None, _Part(state=S.FAILED)),
    "cancelled": (_Part(state=S.CANCELLING), _Part(state=S.CANCELLED)),
    "expired": (_Part(is_over=False, is_overdue=True), _Part(is_late=True)),
}
"""What each status filter shows of the batches that are not over, and of those that are."""

WALKS: Final = 512
"""So many kinds of questions are kept ready: some hundred, and some lengths of pages."""

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


_Columns = ReadOnlyColumnCollection[str, Any]


Ids = Select[Any] | CompoundSelect[Any]


class Walk(NamedTuple):
    """What leads through a list: its parts, and which bounds there are; their values come with each question."""

    parts: tuple[_Part, ...]
    is_behind: bool
    has_newest: bool
    has_oldest: bool
    is_members: bool


class Stretch(NamedTuple):
    """Batches of a list that one statement finds, and the values that it is asked with."""

    walk: Walk
    values: dict[str, Any]
    source: FromClause
    conditions: tuple[ColumnElement[bool], ...] = ()

    @property
    def is_common(self) -> bool:
        """Whether its walk is all that its statement follows from."""
        return not self.conditions

    def ids(self, most: int) -> Ids:
        """The statement that gives so many ids at most, in their order, with their `created_at`."""
        if self.is_common:
            return common_ids(self.walk, most)
        return _ids(self.source, self.walk, self.conditions, most)


def listed_ids(
    connection: Connection, query: ListBatchesQuery, *, after: BatchRecord | None, now: int
) -> list[str]:
    """The ids of the page's batches in their order, with one more where more follow."""
    found: list[str] = []
    for stretch in stretches(connection, query, after=after, now=now):
        found += connection.execute(stretch.ids(query.limit + 1 - len(found)), stretch.values).scalars()
        if len(found) > query.limit:
            break
    return found


def stretches(
    connection: Connection, query: ListBatchesQuery, *, after: BatchRecord | None, now: int
) -> Iterator[Stretch]:
    """The stretches that make up the list, one behind the other."""
    wanted = folded(query.search or "")
    if not is_storable(wanted):
        return
    source = _source(connection, wanted)
    searched = (contains(connection, source.c.search_text, wanted),) if wanted else ()
    for parts, behind in _groups(query, after):
        walk, values = _walk(query, tuple(parts), after=behind)
        yield Stretch(walk, {**values, "now": now}, source, searched)


def _source(connection: Connection, wanted: str) -> FromClause:
    """Where to look: at all, or where SQLite's trigrams name few that may have the text, at those.

    PostgreSQL decides by itself which index it takes.
    """
    if not wanted:
        return listed_batches
    if connection.dialect.name == "sqlite":
        few = few_candidates(connection, wanted)
        return listed_batches if few is None else few
    plan_each_search(connection)
    return listed_batches


def _groups(query: ListBatchesQuery, after: BatchRecord | None) -> list[tuple[list[_Part], BatchRecord | None]]:
    """What is listed, one group behind the other, each with the cursor where that is in it."""
    active, over = _SHOWN[query.status]
    if not query.active_first:
        parts = (active, over) if query.status else (_Part(),)
        return [([part for part in parts if part is not None], after)]
    is_over = after is not None and after.status in TERMINAL
    groups: list[tuple[list[_Part], BatchRecord | None]] = []
    if active is not None and not is_over:
        groups.append(([active], after))
    if over is not None:
        groups.append(([over], after if is_over else None))
    return groups


def _walk(
    query: ListBatchesQuery, parts: tuple[_Part, ...], *, after: BatchRecord | None
) -> tuple[Walk, dict[str, Any]]:
    """The walk through those parts, with as few bounds of time as will do, and what its bounds are."""
    values: dict[str, Any] = {}
    newest = None if query.created_before is None else _second(query.created_before)
    is_behind = after is not None and (newest is None or after.created_at <= newest)
    if is_behind and after is not None:
        values |= {"after_at": after.created_at, "after_id": after.id}
    elif newest is not None:
        values["newest"] = newest
    if query.created_after is not None:
        values["oldest"] = _second(query.created_after, up=True)
    if query.member_id is not None:
        values["member"] = str(query.member_id)
    return Walk(parts, is_behind, "newest" in values, "oldest" in values, "member" in values), values


def _second(moment: datetime, *, up: bool = False) -> int:
    """The whole Unix second at or before that moment, or behind it; it is in UTC where it names no zone."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return -(-since // timedelta(seconds=1)) if up else since // timedelta(seconds=1)


@lru_cache(maxsize=WALKS)
def common_ids(walk: Walk, most: int) -> Ids:
    """Made once for each kind of question: to make it takes longer than to run it."""
    return _ids(listed_batches, walk, (), most)


def _ids(source: FromClause, walk: Walk, conditions: Sequence[ColumnElement[bool]], most: int) -> Ids:
    """The newest ids of the walk's parts together.

    In the table each part is looked through by itself, in the order of its index, until so many are found; the few
    that another index has found are sorted.
    """
    shown = select(source.c.batch_id, source.c.created_at).where(*_bounds(source.c, walk), *conditions)
    order: list[ColumnElement[Any]] = [desc("created_at"), desc("batch_id")]
    # Written out, since PostgreSQL makes a plan to keep only where it knows how few rows are wanted.
    limit = literal_column(str(most), Integer)
    parts = [_part_of(source.c, part) for part in walk.parts]
    if len(parts) == 1 or source is not listed_batches:
        return shown.where(or_(*parts)).order_by(*order).limit(limit)
    each = [shown.where(part).order_by(*order).limit(limit).subquery() for part in parts]
    return union_all(*(select(one) for one in each)).order_by(*order).limit(limit)


def _bounds(columns: _Columns, walk: Walk) -> list[ColumnElement[bool]]:
    """What batches have to be but for their state and their texts."""
    found: list[ColumnElement[bool]] = []
    if walk.is_behind:
        place = tuple_(bindparam("after_at", type_=BigInteger), bindparam("after_id", type_=String))
        found.append(tuple_(columns.created_at, columns.batch_id) < place)
    if walk.has_newest:
        found.append(columns.created_at <= bindparam("newest"))
    if walk.has_oldest:
        found.append(columns.created_at >= bindparam("oldest"))
    if walk.is_members:
        found.append(columns.member_id == bindparam("member"))
    return found


def _part_of(columns: _Columns, part: _Part) -> ColumnElement[bool]:
    values = {"state": part.state, "is_over": part.is_over, "is_late": part.is_late}
    found = [columns[name] == literal(value) for name, value in values.items() if value is not None]
    return and_(true(), *found, *([columns.expires_at < bindparam("now")] if part.is_overdue else ()))


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
        statement = statement.where(_is_named(search) if is_storable(search) else false())
    if after is not None:
        place = tuple_(literal(after.created_at), literal(after.id))
        statement = statement.where(key > place if order == "asc" else key < place)
    columns = (files.c.created_at, files.c.id)
    return statement.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))


def _is_named(part: str) -> ColumnElement[bool]:
    escaped = re.sub("([/%_])", r"/\1", part)
    return func.lower(files.c.filename).like(func.lower(f"%{escaped}%"), escape="/")

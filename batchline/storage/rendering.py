"""Batches as the API's JSON, made by the database: what is read often never becomes an object here."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Select,
    String,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by

from batchline.models.batches import ListBatchesQuery
from batchline.storage.database import looking, retried
from batchline.storage.listing import WALKS, Ids, Walk, common_ids, stretches
from batchline.storage.prepared import Prepared, Question, answers, prepared
from batchline.storage.rows import BatchRecord
from batchline.storage.schema import batches
from batchline.storage.search import is_storable
from batchline.storage.transactions import Transactions

T = TypeVar("T")

BEGINNING: Final = (
    '{"object":"batch","endpoint":%s,"id":"%s","input_file_id":"%s","completion_window":"%s","status":"%s",'
    '"created_at":%s,"expires_at":%s,"request_counts":{"total":%s,"completed":%s,"failed":%s}'
)
ALWAYS: Final = (
    *("id", "input_file_id", "completion_window", "status", "created_at", "expires_at"),
    *("total", "completed", "failed"),
)
"""What goes into that behind the endpoint: numbers, and texts without anything that JSON would escape."""

IDS: Final = ("output_file_id", "error_file_id")
TIMES: Final = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
JSON: Final = ("metadata", "dwext", "analytics")
"""What is kept as JSON is shown as it is; of it a database looks into analytics alone, which are numbers."""


USAGE: Final = (
    ',"usage":{"input_tokens":%s,"input_tokens_details":{"cached_tokens":%s},"output_tokens":%s,'
    '"output_tokens_details":{"reasoning_tokens":%s},"total_tokens":%s}'
)
USED: Final = (
    *("total_prompt_tokens", "total_cached_tokens", "total_completion_tokens", "total_reasoning_tokens"),
    "total_tokens",
)
"""What goes into that, of a batch's analytics."""

SEPARATOR: Final = ",\n"
"""Between objects of a list, and nowhere within one: JSON writes the ends of lines in texts otherwise."""

_SEPARATOR: Final = literal_column(f"'{SEPARATOR}'", Text)


class Rendered(NamedTuple):
    """A batch as JSON, with its analytics apart, and whose it is."""

    text: str
    analytics: str | None
    member_id: str | None

    def to_json(self, *, include_analytics: bool) -> str:
        """The whole, with its analytics where there are any and they are asked for."""
        if self.analytics is None or not include_analytics:
            return self.text
        return f'{self.text[:-1]},"analytics":{self.analytics}}}'


class RenderedPage(NamedTuple):
    """Batches of a page as JSON, with commas between, and their ids, in their order."""

    text: str
    ids: list[str]
    has_more: bool


class _Page:
    """A page while it is put together."""

    def __init__(
        self, connection: Connection, query: ListBatchesQuery, after: BatchRecord | None, now: int
    ) -> None:
        self._dialect = connection.dialect
        self._stretches = stretches(connection, query, after=after, now=now)
        self._limit = query.limit
        self._with_analytics = query.with_analytics
        self._texts: list[str] = []
        self._ids: list[str] = []

    def next(self) -> Question | None:
        """What is to be asked next, if the page is not whole; its answer is one row, for `add`."""
        stretch = None if len(self._ids) > self._limit else next(self._stretches, None)
        if stretch is None:
            return None
        most = self._limit + 1 - len(self._ids)
        if stretch.is_common:
            common = _common_texts(self._dialect, stretch.walk, most, with_analytics=self._with_analytics)
            return common, stretch.values
        texts = _texts(self._dialect.name, stretch.ids(most), with_analytics=self._with_analytics)
        return prepared(texts, self._dialect), stretch.values

    def add(self, text: str | None, ids: str | None) -> None:
        """Go on with those batches."""
        if text is not None and ids is not None:
            self._texts.append(text)
            self._ids += ids.split(SEPARATOR)

    def whole(self) -> RenderedPage:
        """The page, without the batch that tells that more follow."""
        has_more = len(self._ids) > self._limit
        if has_more:
            self._texts[-1] = self._texts[-1].rpartition(SEPARATOR)[0]
        return RenderedPage(SEPARATOR.join(filter(None, self._texts)), self._ids[: self._limit], has_more)


class Rendering(Transactions):
    """Batches as JSON. Made by `Records.rendering`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._looking = looking(engine)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        super().close()
        self._looking.dispose()

    def batches(self, ids: Sequence[str]) -> dict[str, Rendered]:
        """Those of the batches that there are."""
        asked = [each for each in ids if is_storable(each)]

        def work(connection: Connection) -> dict[str, Rendered]:
            values = {"ids": asked if connection.dialect.name == "postgresql" else json.dumps(asked)}
            (rows,) = answers(connection, [(_by_ids(connection.dialect), values)])
            return {row[0]: Rendered(*row[1:]) for row in rows}

        return self._look(work)

    def pages(
        self, asked: Sequence[tuple[ListBatchesQuery, BatchRecord | None]], *, now: int
    ) -> list[RenderedPage]:
        """The page that each query asks for, behind its cursor where it has one."""

        def work(connection: Connection) -> list[RenderedPage]:
            if connection.dialect.name == "sqlite":
                connection.begin()  # for the driver is asked, past what begins by itself
            pages = [_Page(connection, query, after, now) for query, after in asked]
            left = [(page, question) for page in pages if (question := page.next()) is not None]
            while left:
                found = answers(connection, [question for _, question in left])
                for (page, _), ((text, ids),) in zip(left, found, strict=True):
                    page.add(text, ids)
                left = [(page, question) for page, _ in left if (question := page.next()) is not None]
            return [page.whole() for page in pages]

        is_searched = any(query.search is not None for query, _ in asked)
        return self._read(work) if is_searched else self._look(work)

    def _look(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._looking.connect() as connection:
                return work(connection)

        return retried(run)


@lru_cache(maxsize=2 * WALKS)
def _common_texts(dialect: Dialect, walk: Walk, most: int, *, with_analytics: bool) -> Prepared:
    return prepared(_texts(dialect.name, common_ids(walk, most), with_analytics=with_analytics), dialect)


@lru_cache(maxsize=2)
def _by_ids(dialect: Dialect) -> Prepared:
    """One statement however many ids there are."""
    among: ColumnElement[bool] = batches.c.id.in_(
        select(func.json_each(bindparam("ids")).table_valued("value").c.value)
    )
    if dialect.name == "postgresql":
        among = batches.c.id == func.any(bindparam("ids", type_=ARRAY(String)))
    shown = _shown(dialect.name, with_analytics=False)
    return prepared(select(batches.c.id, shown, batches.c.analytics, batches.c.member_id).where(among), dialect)


def _texts(dialect: str, ids: Ids, *, with_analytics: bool) -> Select[Any]:
    """All texts of those batches as one, and all ids, in their order, since each row costs a change of threads."""
    page = ids.subquery("page")
    # PostgreSQL's index is of texts in their common order, and is passed by where one is in that of code points.
    known_as = page.c.batch_id.collate("default") if dialect == "postgresql" else page.c.batch_id
    # Looked up one by one: a join might be begun at the other end, with all batches that there are.
    shown = select(_shown(dialect, with_analytics=with_analytics)).where(batches.c.id == known_as)
    columns = (shown.scalar_subquery(), page.c.batch_id)
    if dialect == "postgresql":
        order = (page.c.created_at.desc(), page.c.batch_id.desc())
        return select(*(func.string_agg(each, aggregate_order_by(_SEPARATOR, *order)) for each in columns))
    # Which takes the rows as they come: by the page's limit, in the page's order.
    return select(*(func.group_concat(each, _SEPARATOR) for each in columns))


def _shown(dialect: str, *, with_analytics: bool) -> ColumnElement[str]:
    """The batch as `BatchResponse` writes it, but for the order of its fields."""
    on_postgresql = dialect == "postgresql"
    quoted = cast(func.to_json(batches.c.endpoint), Text) if on_postgresql else func.json_quote(batches.c.endpoint)
    always = [quoted, *(batches.c[name] for name in ALWAYS)]
    there = [
        *(_where_there(f',"{name}":"', batches.c[name], '"') for name in IDS),
        *(_where_there(f',"{name}":', batches.c[name]) for name in TIMES),
        _where_there(',"errors":{"object":"list","data":', batches.c.errors, "}"),
        _usage(dialect),
        _model(dialect),
        *(_where_there(f',"{name}":', batches.c[name]) for name in JSON[: 3 if with_analytics else 2]),
    ]
    template = literal_column("'" + BEGINNING + "%s" * len(there) + "}'", Text)
    return (func.format if on_postgresql else func.printf)(template, *always, *there, type_=Text)


def _model(dialect: str) -> ColumnElement[str]:
    """The model that all requests name, as a member; nothing if there is none."""
    quoted = (
        cast(func.to_json(batches.c.model), Text) if dialect == "postgresql" else func.json_quote(batches.c.model)
    )
    text = literal_column("""',"model":'""", Text) + quoted
    return case((batches.c.model.is_(None), literal_column("''", Text)), else_=text)


def _usage(dialect: str) -> ColumnElement[str]:
    """The batch's usage as `BatchUsage` writes it, from its analytics; nothing where there are none."""
    on_postgresql = dialect == "postgresql"
    kept = cast(batches.c.analytics, postgresql.JSON) if on_postgresql else batches.c.analytics
    find, root = (func.json_extract_path_text, "") if on_postgresql else (func.json_extract, "$.")
    found = [find(kept, literal_column(f"'{root}{name}'", Text), type_=Text) for name in USED]
    template = literal_column(f"'{USAGE}'", Text)
    written = (func.format if on_postgresql else func.printf)(
        template, *(func.coalesce(each, literal_column("'0'", Text)) for each in found), type_=Text
    )
    return case((batches.c.analytics.is_(None), literal_column("''", Text)), else_=written)


def _where_there(before: str, column: ColumnElement[Any], after: str = "") -> ColumnElement[str]:
    """The column's text between those; nothing where there is none."""
    start, end = (literal_column(f"'{text}'", Text) for text in (before, after))
    text = start + cast(column, Text)
    return func.coalesce(text + end if after else text, literal_column("''", Text), type_=Text)

"""Lists of random batches, after random changes, against a plain filter over the same batches."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from helpers.record_edits import change_batch
from helpers.sample_records import NOW, list_page, make_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from batchline.models.batches import ListBatchesQuery
from batchline.models.status import TERMINAL_STATUSES, TRANSITIONS, BatchStatus, timestamp_field
from batchline.storage.records.schema import batch_index, batches
from batchline.storage.records.store import BatchRecord, FileChanges, Records

S = BatchStatus

IN_FILTER = {
    "in_progress": {S.VALIDATING, S.IN_PROGRESS, S.FINALIZING},
    "completed": {S.COMPLETED},
    "failed": {S.FAILED},
    "cancelled": {S.CANCELLING, S.CANCELLED},
}
MEMBERS = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]
CURIOUS = "aAbB zßẞſKKİıiςΣσÉéе%_*?[]^-'\"\\/“\n\x1f\U0001f600\U0010ffff\u2028\ufffd"  # noqa: RUF001 - for their looks
"""Letters whose case is not simple, and signs that mean something to a pattern, a phrase or a literal."""


def times(spread: int) -> st.SearchStrategy[int]:
    return st.integers(NOW - spread, NOW + spread)


names = st.text(CURIOUS, min_size=1, max_size=5)
texts = st.one_of(names, st.text(CURIOUS + "\0", max_size=5), st.sampled_from(["amber", "Amber birch", "GRÖSSE"]))


@st.composite
def some_batches(draw: st.DrawFn) -> BatchRecord:
    """A batch in any state, as it may be: with the timestamp of the end that it has come to."""
    status = draw(st.sampled_from(S))
    ends = {timestamp_field(status): draw(times(1))} if status in TERMINAL_STATUSES else {}
    return make_batch(
        status=status,
        created_at=draw(times(2)),
        expires_at=draw(times(1)),
        input_filename=draw(names),
        metadata=draw(st.none() | st.dictionaries(texts, texts, max_size=2)),
        member_id=draw(st.none() | st.sampled_from(MEMBERS)),
        **ends,
    )


Change = Callable[[Records, BatchRecord], object]


def moved(records: Records, batch: BatchRecord, now: int) -> None:
    current = records.get_batch(batch.id)
    if current.status in TERMINAL_STATUSES:
        records.retry(
            batch.id,
            now=now,
            generation=current.generation,
            next_generation=current.generation + 1,
            file_changes=FileChanges(),
            expires_at=now + 2,
        )
    else:
        records.change_status(batch.id, min(TRANSITIONS[current.status]), now=now)


changes: st.SearchStrategy[Change] = st.one_of(
    times(3).map(lambda now: lambda records, batch: moved(records, batch, now)),
    times(3).map(lambda at: lambda records, batch: change_batch(records, batch.id, expires_at=at)),
    st.dictionaries(texts, texts, max_size=1).map(
        lambda metadata: lambda records, batch: change_batch(records, batch.id, metadata=metadata)
    ),
    st.just(lambda records, batch: change_batch(records, batch.id, total=7)),
)

moments = times(2).flatmap(
    lambda at: st.sampled_from([0, -0.25, 0.25]).map(
        lambda off: datetime.fromtimestamp(at, UTC) + timedelta(seconds=off)
    )
)


@st.composite
def some_queries(draw: st.DrawFn, made: Sequence[BatchRecord]) -> ListBatchesQuery:
    """Any filters together; a search is more often than not for what is there."""
    parts = [part for batch in made for part in parts_of(batch) if part]
    there = st.sampled_from(parts or ["x"]).flatmap(
        lambda part: st.tuples(st.integers(0, len(part)), st.integers(0, len(part))).map(
            lambda ends: part[min(ends) : max(ends)].swapcase()
        )
    )
    optional = {
        "search": there | there | texts,
        "status": st.sampled_from([*IN_FILTER, "expired"]),
        "member_id": st.sampled_from(MEMBERS),
        "created_after": moments,
        "created_before": moments,
        "active_first": st.booleans(),
    }
    chosen = draw(st.fixed_dictionaries({"limit": st.integers(1, 5)}, optional=optional))
    return ListBatchesQuery.model_validate(chosen)


def parts_of(batch: BatchRecord) -> list[str]:
    pairs = [text for pair in (batch.metadata or {}).items() for text in pair]
    return [batch.id, batch.input_filename, *pairs]


def is_shown(batch: BatchRecord, query: ListBatchesQuery) -> bool:
    ends = [batch.completed_at, batch.failed_at, batch.cancelled_at]
    late = batch.status in TERMINAL_STATUSES and any(at is not None and at > batch.expires_at for at in ends)
    overdue = batch.status not in TERMINAL_STATUSES and batch.expires_at < NOW
    created = datetime.fromtimestamp(batch.created_at, UTC)
    return all(
        [
            not query.search or any(query.search.casefold() in part.casefold() for part in parts_of(batch)),
            query.status in {None, "expired"} or batch.status in IN_FILTER[query.status or ""],
            query.status != "expired" or batch.status is S.EXPIRED or late or overdue,
            query.member_id is None or batch.member_id == str(query.member_id),
            query.created_after is None or created >= query.created_after,
            query.created_before is None or created <= query.created_before,
        ]
    )


def in_order(made: Sequence[BatchRecord], query: ListBatchesQuery) -> list[str]:
    newest = sorted(made, key=lambda batch: (batch.created_at, batch.id), reverse=True)
    if query.active_first:
        newest.sort(key=lambda batch: batch.status in TERMINAL_STATUSES)
    return [batch.id for batch in newest if is_shown(batch, query)]


def in_pages(records: Records, query: ListBatchesQuery) -> Iterator[list[str]]:
    after = None
    while True:
        page = list_page(records, query.model_copy(update={"after": after}), now=NOW)
        yield [batch.id for batch in page.data]
        if not page.has_more:
            return
        after = page.last_id


def forget_all(records: Records) -> None:
    with records._engine.begin() as connection:
        connection.execute(delete(batches))
        connection.execute(delete(batch_index))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_list_pages_match_a_plain_filter(records: Records, data: st.DataObject) -> None:
    forget_all(records)
    made = data.draw(st.lists(some_batches(), min_size=4, max_size=10), label="made")
    for batch in made:
        records.add_batch(batch)
    for change in data.draw(st.lists(changes, max_size=6), label="changes"):
        change(records, data.draw(st.sampled_from(made)))
    gone = data.draw(st.sets(st.sampled_from([batch.id for batch in made]), max_size=2), label="gone")
    for batch_id in gone:
        records.delete_batch(batch_id, now=NOW, lease_s=60)
    kept = [records.get_batch(batch.id) for batch in made if batch.id not in gone]

    for query in data.draw(st.lists(some_queries(kept), min_size=6, max_size=6), label="queries"):
        pages = [*in_pages(records, query)]
        assert [each for page in pages for each in page] == in_order(kept, query)
        assert all(len(page) == query.limit for page in pages[:-1])

"""Batches as JSON from the database, against what their records show."""

import json

import msgspec
import psycopg
import pytest
from some_records import NOW, a_batch, a_full_batch

from batchline.models.batches import BatchError, BatchResponse, ListBatchesQuery
from batchline.models.errors import StorageFault
from batchline.models.settings import load_settings
from batchline.models.status import BatchStatus
from batchline.storage.records import BatchRecord, Records, open_records

FULL = a_full_batch()
ODD = "Größe 😀 \"'\\ %s %% {} \n\r\t\0\x7f\u2028"
"""What JSON, a template or a database could trip over."""

OPTIONAL = [
    name
    for name in BatchResponse.model_fields
    if name in FULL.__struct_fields__ and getattr(a_batch(), name) is None
]


def shown(records: Records, batch: BatchRecord, *, include_analytics: bool = True) -> dict[str, object]:
    rendered = records.rendering.batches([batch.id])[batch.id]
    assert rendered.member_id == batch.member_id
    return json.loads(rendered.to_json(include_analytics=include_analytics))


def expected(batch: BatchRecord, *, include_analytics: bool = True) -> dict[str, object]:
    return json.loads(batch.to_response(include_analytics=include_analytics).to_json())


@pytest.mark.parametrize("include_analytics", [False, True])
def test_a_full_batch_has_every_field(include_analytics: bool, records: Records) -> None:
    records.add_batch(FULL)

    found = shown(records, FULL, include_analytics=include_analytics)

    assert found == expected(FULL, include_analytics=include_analytics)
    assert set(found) == set(BatchResponse.model_fields) - (set() if include_analytics else {"analytics"})


@pytest.mark.parametrize("name", [None, *OPTIONAL])
def test_what_is_absent_is_left_out(name: str | None, records: Records) -> None:
    batch = a_batch(**({} if name is None else {name: getattr(FULL, name)}))
    records.add_batch(batch)

    assert shown(records, batch) == expected(batch)


def test_odd_texts_are_shown_as_they_are(records: Records) -> None:
    batch = a_batch(
        endpoint=ODD.replace("\0", ""),
        metadata={ODD: ODD, "": ""},
        errors=tuple(BatchError(code=ODD, line=line, message=ODD) for line in range(1, 1_001)),
    )
    records.add_batch(batch)

    assert shown(records, batch) == expected(batch)
    assert "\n" not in records.rendering.batches([batch.id])[batch.id].text


def test_of_many_that_are_asked_for_those_are_found_that_there_are(records: Records) -> None:
    made = [records.add_batch(a_batch(created_at=NOW + number)) for number in range(70)]

    found = records.rendering.batches(
        [*(batch.id for batch in made), made[0].id, "batch-none", "", "'", "\0", "\ud800"]
    )

    assert set(found) == {batch.id for batch in made}
    assert all(json.loads(found[batch.id].text) == expected(batch) for batch in made)


def test_pages_that_are_asked_for_together_are_each_their_own(records: Records) -> None:
    made = [
        records.add_batch(msgspec.structs.replace(a_full_batch(), created_at=NOW + number)) for number in range(5)
    ][::-1]
    asked = [
        (ListBatchesQuery(limit=2), None),
        (ListBatchesQuery(limit=3, include="analytics"), made[1]),
        (ListBatchesQuery(limit=5), None),
        (ListBatchesQuery(), made[-1]),
    ]

    first, behind, all_, none = records.rendering.pages(asked, now=NOW)

    assert (first.ids, first.has_more) == ([batch.id for batch in made[:2]], True)
    assert (behind.ids, behind.has_more) == ([batch.id for batch in made[2:]], False)
    assert json.loads(f"[{behind.text}]") == [expected(batch) for batch in made[2:]]
    assert json.loads(f"[{all_.text}]") == [expected(batch, include_analytics=False) for batch in made]
    assert none == ("", [], False)


def test_a_fault_of_the_database_is_told_as_one_and_what_follows_is_answered(records: Records) -> None:
    batch = records.add_batch(a_batch())
    asked = [(ListBatchesQuery(), None)] * 3
    with records._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE listed_batches RENAME TO gone")

    with pytest.raises(StorageFault, match="listed_batches"):
        records.rendering.pages(asked, now=NOW)

    with records._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO listed_batches")
    assert [page.ids for page in records.rendering.pages(asked, now=NOW)] == [[batch.id]] * 3


@pytest.mark.system
def test_after_faults_in_blocks_of_pages_each_is_answered_alone_and_together(postgres_database) -> None:
    """PostgreSQL's driver prepares what is asked often; a fault keeps the statements behind it from being so."""
    url = postgres_database["database_url"]
    records = open_records(load_settings(database_url=f"{url}?options=-c%20statement_timeout%3D100"))
    batch = records.add_batch(a_batch(status=BatchStatus.COMPLETED, completed_at=NOW))
    asked = [(ListBatchesQuery(), None), (ListBatchesQuery(status="completed"), None)]
    records.rendering.pages(asked, now=NOW)
    with psycopg.connect(url) as locker:
        locker.execute("LOCK TABLE listed_batches IN ACCESS EXCLUSIVE MODE")
        for _ in range(8):
            with pytest.raises(StorageFault, match="statement timeout"):
                records.rendering.pages(asked, now=NOW)

    for some in ([asked[0]], [asked[1]], asked):
        assert [page.ids for page in records.rendering.pages(some, now=NOW)] == [[batch.id]] * len(some)
    records.close()

"""Batches of a list: their selection, order and pages."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from helpers.sample_records import NOW, list_page, make_batch, make_file, make_full_batch

from batchline.models.batches import ListBatchesQuery
from batchline.models.errors import NotFound
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord, Records

S = BatchStatus


def listed(records: Records, **query: object) -> list[str]:
    """The ids of the page."""
    return [batch.id for batch in list_page(records, ListBatchesQuery(**query), now=NOW).data]


@pytest.fixture
def add(records: Records) -> Callable[..., str]:
    """Record a batch; its id."""
    return lambda **fields: records.add_batch(make_batch(**fields)).id


# Order and pages


def test_list_without_batches_is_empty(records: Records) -> None:
    page = list_page(records, ListBatchesQuery(), now=NOW)

    assert page.model_dump() == {"object": "list", "data": [], "has_more": False}


@pytest.mark.parametrize("count", [19, 20, 21])
def test_has_more_is_true_only_if_batches_remain(count: int, records: Records, add: Callable) -> None:
    ids = [add() for _ in range(count)][::-1]

    page = list_page(records, ListBatchesQuery(), now=NOW)

    assert [batch.id for batch in page.data] == ids[:20]
    assert (page.has_more, page.first_id, page.last_id) == (count > 20, ids[0], ids[:20][-1])


@pytest.mark.parametrize("active_first", [False, True])
def test_batch_created_between_pages_does_not_shift_next_page(
    active_first: bool, records: Records, add: Callable
) -> None:
    ids = [add() for _ in range(6)][::-1]
    first = listed(records, limit=3, active_first=active_first)
    add()

    assert first + listed(records, limit=3, after=first[-1], active_first=active_first) == ids


@pytest.mark.parametrize("active_first", [False, True])
def test_cursor_of_unknown_batch_is_not_found(active_first: bool, records: Records, add: Callable) -> None:
    add()

    with pytest.raises(NotFound, match="batch-of-nobody"):
        listed(records, after="batch-of-nobody", active_first=active_first)


def test_cursor_that_no_database_can_store_is_not_found(records: Records, add: Callable) -> None:
    add()

    for cursor in ("", "batch-\0", "batch-\ud800", "x" * 10_000):
        with pytest.raises(NotFound):
            listed(records, after=cursor)


def test_analytics_are_listed_only_if_included(records: Records) -> None:
    records.add_batch(make_full_batch())

    assert list_page(records, ListBatchesQuery(), now=NOW).data[0].analytics is None
    assert list_page(records, ListBatchesQuery(include="analytics"), now=NOW).data[0].analytics is not None


# Filters


LATE: dict[str, tuple[bool, dict[str, object]]] = {
    "expired": (True, {"status": S.EXPIRED, "expires_at": NOW - 1, "expired_at": NOW}),
    "overdue": (True, {"status": S.IN_PROGRESS, "expires_at": NOW - 1}),
    "overdue while cancelling": (True, {"status": S.CANCELLING, "expires_at": NOW - 1}),
    "due now": (False, {"status": S.IN_PROGRESS, "expires_at": NOW}),
    "in time": (False, {"status": S.COMPLETED, "expires_at": NOW - 5, "completed_at": NOW - 6}),
    "at the last moment": (False, {"status": S.COMPLETED, "expires_at": NOW - 5, "completed_at": NOW - 5}),
    "completed late": (True, {"status": S.COMPLETED, "expires_at": NOW - 5, "completed_at": NOW - 4}),
    "failed late": (True, {"status": S.FAILED, "expires_at": NOW - 5, "failed_at": NOW - 4}),
    "cancelled late": (True, {"status": S.CANCELLED, "expires_at": NOW - 5, "cancelled_at": NOW - 4}),
    "cancelled in time": (False, {"status": S.CANCELLED, "expires_at": NOW - 5, "cancelled_at": NOW - 9}),
}


def test_expired_filter_lists_expired_overdue_and_late_batches(records: Records, add: Callable) -> None:
    ids = {add(**fields): name for name, (_, fields) in LATE.items()}

    assert {ids[each] for each in listed(records, status="expired")} == {name for name in LATE if LATE[name][0]}


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)


CREATED = [
    (None, None, [0, 1, 2]),
    (at(1), None, [1, 2]),
    (at(1.001), None, [2]),
    (at(0.999), None, [1, 2]),
    (at(0.5), at(1.5), [1]),
    (None, at(1), [0, 1]),
    (None, at(0.999), [0]),
    (None, at(0.5), [0]),
    (at(1), at(1), [1]),
    (at(2), at(1), []),
    (at(1).astimezone(timezone(timedelta(hours=5))), None, [1, 2]),
    (datetime.min, datetime.max, [0, 1, 2]),
]
"""Bounds of a list, and the batches within them, which are created at 0, 1 and 2 s."""


def test_created_after_and_before_are_inclusive(records: Records, add: Callable) -> None:
    ids = [add(created_at=NOW + second) for second in range(3)]

    for after, before, shown in CREATED:
        found = listed(records, created_after=after, created_before=before)
        assert found == [ids[each] for each in shown[::-1]], (after, before)


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_time_without_zone_is_utc(records: Records, add: Callable) -> None:
    ids = [add(created_at=NOW + second) for second in range(3)]

    assert listed(records, created_after=at(1).replace(tzinfo=None)) == [ids[2], ids[1]]
    assert listed(records, created_before=at(1).replace(tzinfo=None)) == [ids[1], ids[0]]


# Search


def test_search_covers_id_filename_and_metadata(records: Records, add: Callable) -> None:
    by_name = add(input_filename="Quarterly.jsonl")
    by_value = add(metadata={"what": "quarterly"})
    by_key = add(metadata={"quarterly": "yes"})
    add(input_filename="yearly.jsonl", endpoint="/quarterly", member_id="quarterly")

    assert listed(records, search="quarterly") == [by_key, by_value, by_name]
    assert listed(records, search=by_name[-8:]) == [by_name]


FOUND = {
    "the case of latin letters": ("REQUEST", "my-Requests.jsonl"),
    "the case of other letters": ("grün", "GRÜN.jsonl"),
    "letters with marks": ("ÜBER", "über.jsonl"),
    "the very text": ("Übergröße", "Übergröße.jsonl"),
    "a percent sign": ("50%", "at 50% off.jsonl"),
    "an underscore": ("a_b", "a_b.jsonl"),
    "a slash": ("a/b", "a/b.jsonl"),
    "a backslash": ("a\\b", "a\\b.jsonl"),
    "a quotation mark": ('say "yes"', 'say "yes".jsonl'),
    "an apostrophe": ("it's", "it's.jsonl"),
    "an emoji": ("😀", "a 😀.jsonl"),
}


@pytest.mark.parametrize(("wanted", "name"), [("STRASSE", "Hauptstraße"), ("straße", "STRASSE"), ("σας", "ΣΑΣ")])
def test_search_folds_case_of_special_letters(wanted: str, name: str, records: Records, add: Callable) -> None:
    add(input_filename="Stras e.jsonl")
    there = add(input_filename=f"{name}.jsonl")

    assert listed(records, search=wanted) == [there]


@pytest.mark.parametrize("place", ["filename", "metadata"])
def test_search_finds_text_with_any_characters(place: str, records: Records, add: Callable) -> None:
    for name, (wanted, text) in FOUND.items():
        batch = add(input_filename=text) if place == "filename" else add(metadata={"k": text})

        assert batch in listed(records, search=wanted), name


def test_search_has_no_wildcards(records: Records, add: Callable) -> None:
    add(input_filename="50 abc requests", metadata={"abc": "50 x", "k": json.dumps(1)})

    for wanted in ("50%x", "%", "_", "a_c", "/", "\\", "request.", '"', "\0", '":"', "\ud800", "a\udfffb"):
        assert listed(records, search=wanted) == [], wanted


def test_search_does_not_match_across_fields(records: Records, add: Callable) -> None:
    add(input_filename="xy", metadata={"zw": "uv"})  # letters that no id has

    for wanted in ("xyzw", "zwuv", "y\ufdd0z", "\ufdd0", "\ufdd1", "xy\nzw", "xy zw"):
        assert listed(records, search=wanted) == [], wanted


def test_search_finds_nul_in_metadata(records: Records, add: Callable) -> None:
    batch = add(metadata={"a": "b\0c"})
    add(metadata={"a": "bc"})

    assert listed(records, search="B\0C") == listed(records, search="\0") == [batch]


def test_long_search_is_compared_completely(records: Records, add: Callable) -> None:
    text = "a%" + "😀" * 60_000  # as many bytes a letter as there can be
    batch = add(input_filename=text)

    for length in (3, 10_000, 10_001, 60_000):
        assert listed(records, search=text[:length].upper()) == [batch], length
        assert listed(records, search=text[: length - 1] + "~") == [], length


def test_listed_batch_equals_its_record(records: Records) -> None:
    full: BatchRecord = records.add_batch(make_full_batch())

    assert list_page(records, ListBatchesQuery(), now=NOW).data == [full.to_response()]


# Files


@pytest.fixture
def add_file(records: Records) -> Callable[..., str]:
    """Record a file; its id."""

    def add(**fields: object) -> str:
        file = make_file(**fields)
        records.add_file(file)
        return file.id

    return add


def listed_files(records: Records, **query: object) -> list[str]:
    """The ids of the page."""
    return [file.id for file in records.list_files(**query)[0]]


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_files_are_listed_by_age_in_pages(limit: int, order: str, records: Records, add_file: Callable) -> None:
    later = [add_file(created_at=NOW + 1) for _ in range(2)]
    ids = [*(add_file(created_at=NOW) for _ in range(3)), *later]
    expected = ids if order == "asc" else ids[::-1]

    shown, after, has_more = [], None, True
    while has_more:
        page, has_more = records.list_files(limit=limit, order=order, after=after)
        shown += [file.id for file in page]
        after = shown[-1]

    assert shown == expected


def test_files_are_filtered_by_purpose(records: Records, add_file: Callable) -> None:
    add_file(purpose="batch")
    output = add_file(purpose="batch_output")

    assert listed_files(records, purpose="batch_output") == [output]


def test_file_search_finds_name_with_any_characters(records: Records, add_file: Callable) -> None:
    add_file(filename="another.jsonl")
    for name, (wanted, filename) in FOUND.items():
        file = add_file(filename=filename)

        assert file in listed_files(records, search=wanted), name


def test_file_search_without_match_is_empty(records: Records, add_file: Callable) -> None:
    add_file(filename="requests.jsonl")

    for wanted in ("\0", "\ud800", "%", "_"):
        assert listed_files(records, search=wanted) == [], wanted


def test_cursor_of_unknown_file_is_not_found(records: Records, add_file: Callable) -> None:
    add_file()

    with pytest.raises(NotFound, match="file-of-nobody"):
        records.list_files(after="file-of-nobody")

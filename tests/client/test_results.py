"""Results: one item a request in input order, whatever became of it."""

import threading
from collections import Counter
from contextlib import suppress
from itertools import product

import pytest
from helpers.polling import until
from helpers.request_files import write_requests

from batchline.models.errors import InvalidInput, NotFound
from batchline.steps.spool import parse_segment_records
from batchline.storage.objects import layout

TOTAL = 90


@pytest.fixture
def ended(make_client, tmp_path):
    """A batch of which every ninth request failed, in chunks of ten."""
    here = make_client(chunk_requests=10)
    path = write_requests(
        tmp_path / "r.jsonl",
        TOTAL,
        prompt=lambda number: "simulate:status=400" if number % 9 == 4 else f"Question {number}?",
        blank_every=4,
    )
    file = here.client.files.create(file=path)
    batch = here.client.batches.create(input_file_id=file.id)
    return here.client, here.client.batches.wait(batch.id, timeout_s=60)


def test_results_contain_every_request_with_both_bodies(ended):
    client, batch = ended
    items = list(client.batches.results(batch.id))

    assert [item.custom_id for item in items] == [f"request-{number}" for number in range(TOTAL)]
    for number, item in enumerate(items):
        assert item.model == "gpt-4o-mini"
        assert item.input_body["messages"][0]["role"] == "user"
        if number % 9 == 4:
            assert (item.status, item.error.partition(":")[0]) == ("failed", "invalid_request")
        else:
            assert item.input_body["messages"][0]["content"] == f"Question {number}?"
            assert (item.status, item.error) == ("completed", None)
            assert item.response_body["object"] == "chat.completion"


def test_results_page_equals_slice_of_all_results(ended):
    client, batch = ended
    items = list(client.batches.results(batch.id))

    for skip, limit in product([0, 1, 9, 10, 11, 45, 89, 90, 500], [1, 10, 25, None]):
        page = list(client.batches.results(batch.id, skip=skip, limit=limit))
        assert page == items[skip:][:limit], (skip, limit)


QUERIES = [
    {"status": "failed"},
    {"status": "completed", "skip": 3, "limit": 5},
    {"search": "REQUEST-4"},
    {"search": "4", "status": "failed", "skip": 1},
    {"status": "pending"},
    {"search": "nobody"},
]


def test_results_filters_apply_before_paging(ended):
    client, batch = ended
    items = list(client.batches.results(batch.id))

    for query in QUERIES:
        status, search = query.get("status"), query.get("search", "").lower()
        wanted = [item for item in items if status in {None, item.status} and search in item.custom_id]
        skip, limit = query.get("skip", 0), query.get("limit")
        assert list(client.batches.results(batch.id, **query)) == wanted[skip:][:limit], query


def test_results_page_at_depth_reads_no_earlier_row_group(ended, monkeypatch):
    client, batch = ended
    read = []
    store = client.services.store
    original = store.read

    def counted(key, start=0, end=None):
        read.append((key.rpartition("/")[2], start))
        return original(key, start, end)

    monkeypatch.setattr(store, "read", counted)
    list(client.batches.results(batch.id, skip=TOTAL - 5, limit=5))

    manifest_and_plan = {"manifest.json", "plan.json"}
    starts = [start for name, start in read if name == "output.jsonl"]
    assert starts
    assert min(starts) > 0
    assert {name for name, _ in read} <= manifest_and_plan | {
        "requests.parquet",
        "output.jsonl",
        "errors.jsonl",
        "content.jsonl",
    }


def test_results_before_validation_are_empty(make_client, tmp_path):
    client = make_client().client
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3))
    batch = client.batches.create(input_file_id=file.id, via=None)

    assert list(client.batches.results(batch.id)) == []


def test_results_of_running_batch_show_status_of_each_request(start_held_batch, controlled):
    client, batch_id = start_held_batch(200, chunk_requests=10)
    until(lambda: client.batches.record(batch_id).output_file_id)
    file_id = client.batches.record(batch_id).output_file_id
    prefixes, seen = [b"".join(client.files.content(file_id))], set()
    for answered in (35, 95, 155):
        controlled.answer_first(answered)
        until(lambda answered=answered: statuses(client, batch_id)["completed"] == answered, every_s=0.05)
        seen |= set(statuses(client, batch_id))
        prefixes.append(b"".join(client.files.content(file_id)))
    controlled.answer_all()
    client.batches.wait(batch_id, timeout_s=60)

    prefixes.append(b"".join(client.files.content(file_id)))
    assert seen == {"completed", "in_progress", "pending"}
    lengths = [len(prefix) for prefix in prefixes]  # which of the first are answered is for the upstream to say
    assert (lengths, lengths[0]) == (sorted(lengths), 0)
    assert 0 < lengths[-2] < lengths[-1]
    assert all(prefixes[-1].startswith(prefix) for prefix in prefixes)


def statuses(client, batch_id):
    """Count the requests by status; check that all are present, in input order."""
    items = list(client.batches.results(batch_id))
    assert [item.custom_id for item in items] == [f"request-{number}" for number in range(200)]
    return Counter(item.status for item in items)


def with_answers(store, batch_id) -> set[str]:
    """The batch's segments that hold answers; the first of a run only shows that one can be written."""
    found = set()
    for info in store.list_objects(layout.segments_prefix(batch_id, 0)):
        with suppress(NotFound):  # its chunk may have been finished since
            if list(parse_segment_records(store.read(info.key))):
                found.add(info.key)
    return found


def test_results_read_part_of_chunk_finished_meanwhile(start_held_batch, controlled, monkeypatch):
    client, batch_id = start_held_batch(200, chunk_requests=20)
    store, reader = client.services.store, threading.current_thread()
    controlled.answer_first(30)
    until(lambda: client.batches.record(batch_id).output_file_id)
    until(lambda: statuses(client, batch_id)["completed"] == 30)  # then no chunk finishes until the test goes on
    found = with_answers(store, batch_id)
    original, gone = store.read, []

    def read_when_it_is_gone(key, start=0, end=None):
        if key in found and threading.current_thread() is reader and not gone:
            gone.append(key)
            controlled.answer_all()
            until(lambda: not store.exists(key))
        return original(key, start, end)

    monkeypatch.setattr(store, "read", read_when_it_is_gone)
    items = list(client.batches.results(batch_id))

    assert [item.custom_id for item in items] == [f"request-{number}" for number in range(200)]
    first = 20 * layout.parse_segment(gone[0]).chunk
    assert {item.status for item in items[first : first + 20]} == {"completed"}


def test_results_of_unknown_batch_or_invalid_query_are_rejected(make_client):
    client = make_client().client

    with pytest.raises(NotFound, match="batch-of-nobody"):
        client.batches.results("batch-of-nobody")
    with pytest.raises(InvalidInput, match="status"):
        client.batches.results("batch-of-nobody", status="done")
    with pytest.raises(InvalidInput, match="limit"):
        client.batches.results("batch-of-nobody", limit=0)

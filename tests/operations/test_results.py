"""Results: one item a request in input order, whatever became of it."""

import threading

import pytest
from some_requests import requests_file
from waiters import until

from batchline.models.errors import InvalidInput, NotFound
from batchline.storage import layout

TOTAL = 90


@pytest.fixture
def ended(world, tmp_path):
    """A batch of which every ninth request failed, in chunks of ten."""
    here = world(chunk_requests=10)
    path = requests_file(
        tmp_path / "r.jsonl",
        TOTAL,
        prompt=lambda number: "simulate:status=400" if number % 9 == 4 else f"Question {number}?",
        blank_every=4,
    )
    file = here.client.files.create(file=path)
    batch = here.client.batches.create(input_file_id=file.id)
    return here.client, here.client.batches.wait(batch.id, timeout_s=60)


def test_every_request_is_an_item_with_both_its_bodies(ended):
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


@pytest.mark.parametrize("skip", [0, 1, 9, 10, 11, 45, 89, 90, 500])
@pytest.mark.parametrize("limit", [1, 10, 25, None])
def test_a_page_is_a_slice_of_all(ended, skip, limit):
    client, batch = ended
    items = list(client.batches.results(batch.id))

    assert list(client.batches.results(batch.id, skip=skip, limit=limit)) == items[skip:][:limit]


@pytest.mark.parametrize(
    "query",
    [
        {"status": "failed"},
        {"status": "completed", "skip": 3, "limit": 5},
        {"search": "REQUEST-4"},
        {"search": "4", "status": "failed", "skip": 1},
        {"status": "pending"},
        {"search": "nobody"},
    ],
)
def test_filters_choose_before_the_page_is_cut(ended, query):
    client, batch = ended
    status, search = query.get("status"), query.get("search", "").lower()
    wanted = [
        item
        for item in client.batches.results(batch.id)
        if status in {None, item.status} and search in item.custom_id
    ]

    skip, limit = query.get("skip", 0), query.get("limit")
    assert list(client.batches.results(batch.id, **query)) == wanted[skip:][:limit]


def test_a_page_at_depth_reads_no_row_group_before_it(ended, monkeypatch):
    client, batch = ended
    read = []
    store = client.engine.store
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


def test_before_validation_there_are_none(world, tmp_path):
    client = world().client
    file = client.files.create(file=requests_file(tmp_path / "r.jsonl", 3))
    batch = client.batches.create(input_file_id=file.id, via=None)

    assert list(client.batches.results(batch.id)) == []


def test_while_it_runs_each_request_says_where_it_is(world, tmp_path):
    here = world(
        stand_in={"latency_s": 0.05}, upstream={"max_in_flight": 4}, chunk_requests=10, flush_interval_s=0.05
    )
    file = here.client.files.create(file=requests_file(tmp_path / "r.jsonl", 200))
    batch = here.client.batches.create(input_file_id=file.id)
    seen: set[str] = set()
    prefixes: list[bytes] = []
    while here.client.batches.ended(batch.id) is None:
        items = list(here.client.batches.results(batch.id))
        assert [item.custom_id for item in items] in ([], [f"request-{number}" for number in range(200)])
        seen |= {item.status for item in items}
        record = here.client.batches.record(batch.id)
        if record.output_file_id:
            prefixes.append(b"".join(here.client.files.content(record.output_file_id)))

    assert {"completed", "in_progress", "pending"} <= seen
    whole = b"".join(here.client.files.content(here.client.batches.record(batch.id).output_file_id))
    assert all(whole.startswith(prefix) for prefix in prefixes)
    assert len(set(prefixes)) > 2


def test_a_chunk_that_is_finished_while_its_segments_are_read_is_read_from_its_part(world, tmp_path, monkeypatch):
    here = world(
        stand_in={"latency_s": 0.05}, upstream={"max_in_flight": 4}, chunk_requests=20, flush_interval_s=0.05
    )
    client, store, reader = here.client, here.client.engine.store, threading.current_thread()
    file = client.files.create(file=requests_file(tmp_path / "r.jsonl", 200))
    batch = client.batches.create(input_file_id=file.id)
    original, gone = store.read, []

    def read_when_it_is_gone(key, start=0, end=None):
        if "/segments/" in key and threading.current_thread() is reader and not gone:
            gone.append(key)
            until(lambda: not store.exists(key))
        return original(key, start, end)

    monkeypatch.setattr(store, "read", read_when_it_is_gone)
    while not gone:
        assert client.batches.ended(batch.id) is None
        items = list(client.batches.results(batch.id))

    assert [item.custom_id for item in items] == [f"request-{number}" for number in range(200)]
    first = 20 * layout.parse_segment(gone[0]).chunk
    assert {item.status for item in items[first : first + 20]} == {"completed"}


def test_an_unknown_batch_and_a_wrong_query_are_refused(world):
    client = world().client

    with pytest.raises(NotFound, match="batch-of-nobody"):
        client.batches.results("batch-of-nobody")
    with pytest.raises(InvalidInput, match="status"):
        client.batches.results("batch-of-nobody", status="done")
    with pytest.raises(InvalidInput, match="limit"):
        client.batches.results("batch-of-nobody", limit=0)

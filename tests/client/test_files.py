"""Files: every way to upload one, ranges of their content, lists, and what is refused."""

import gzip
import io
from itertools import product

import pytest
import zstandard
from helpers.kill_points import failing_client
from helpers.polling import until
from helpers.request_files import write_requests

from batchline.models.errors import InvalidInput, NotFound, StorageFault

CONTENT = b"".join(b'{"line": %d}\n' % number for number in range(200))


def path_to(tmp_path, name="r.jsonl", content=CONTENT):
    path = tmp_path / name
    path.write_bytes(content)
    return path


WAYS = {
    "a path": path_to,
    "a path's text": lambda tmp_path: str(path_to(tmp_path)),
    "an address": lambda tmp_path: f"file://{path_to(tmp_path)}",
    "bytes": lambda _: CONTENT,
    "an open file": lambda tmp_path: path_to(tmp_path).open("rb"),
    "a stream": lambda _: io.BytesIO(CONTENT),
    "a name and bytes": lambda _: ("named.jsonl", CONTENT),
    "a name and a stream": lambda _: ("named.jsonl", io.BytesIO(CONTENT)),
    "gzip": lambda tmp_path: path_to(tmp_path, "r.jsonl.gz", gzip.compress(CONTENT)),
    "zstd": lambda _: ("r.jsonl.zst", zstandard.compress(CONTENT)),
}


def test_file_creation_accepts_every_kind_of_source(make_client, tmp_path):
    client = make_client(source_roots=[str(tmp_path)]).client
    for way, give in WAYS.items():
        given = give(tmp_path)

        file = client.files.create(file=given)

        if isinstance(given, io.IOBase):
            given.close()
        assert (file.bytes, file.purpose, file.object) == (len(CONTENT), "batch", "file"), way
        assert file.filename in {"r.jsonl", "named.jsonl", "input.jsonl"}, way
        assert client.files.retrieve(file.id) == file, way
        assert b"".join(client.files.content(file.id)) == CONTENT, way


STARTS = [0, 1, 1_000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 5]
ENDS = [None, 0, 7, 1_001, len(CONTENT), len(CONTENT) + 5]


def test_content_range_equals_slice(world_of_one):
    client, file = world_of_one

    for start, end in product(STARTS, ENDS):
        found = b"".join(client.files.content(file.id, start=start, end=end))
        assert found == CONTENT[start:end], (start, end)


@pytest.fixture
def world_of_one(make_client):
    client = make_client().client
    return client, client.files.create(file=CONTENT)


def test_content_range_of_running_batch_is_slice_of_final_content(start_held_batch, controlled):
    controlled.status_rule = lambda number: 400 if number % 3 == 0 else 200
    client, batch_id = start_held_batch(150, chunk_requests=10)
    until(lambda: client.batches.record(batch_id).error_file_id)
    record, slices = client.batches.record(batch_id), []
    for answered in (10, 40, 80, 120):
        controlled.answer_first(answered)
        until(lambda answered=answered: settled(client, batch_id) == answered, every_s=0.05)
        for each in (record.output_file_id, record.error_file_id):
            for start, end in ((0, None), (100, 2_000), (1_500, None)):
                slices.append((each, start, end, b"".join(client.files.content(each, start=start, end=end))))
    controlled.answer_all()
    client.batches.wait(batch_id, timeout_s=60)

    whole = {each: b"".join(client.files.content(each)) for each in (record.output_file_id, record.error_file_id)}
    assert all(whole[each][start:end].startswith(some) for each, start, end, some in slices)
    assert len({some for *_, some in slices}) > 12


def settled(client, batch_id):
    """Return the number of requests that completed or failed."""
    return sum(item.status in {"completed", "failed"} for item in client.batches.results(batch_id))


LOOKS = {
    "content": lambda files, file_id: b"".join(files.content(file_id)).count(b"\n"),
    "a part": lambda files, file_id: b"".join(files.content(file_id, end=10**6)).count(b"\n"),
    "extent": lambda files, file_id: files.extent(file_id).lines,
    "lines": lambda files, file_id: files.lines(file_id, skip=2).last_line,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_file_read_while_batch_ends_is_complete(look, make_client, tmp_path, monkeypatch):
    here = make_client(simulator={"latency_s": 0.2}, upstream={"max_in_flight": 4}, chunk_requests=2)
    client, records = here.client, here.client.services.records
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 12))
    batch = client.batches.create(input_file_id=file.id)
    until(lambda: client.batches.record(batch.id).output_file_id)
    output, find = client.batches.record(batch.id).output_file_id, records.find_batch_of_file

    def find_when_it_is_over(file_id):
        client.batches.wait(batch.id, poll_interval_s=0.02)
        return find(file_id)

    monkeypatch.setattr(records, "find_batch_of_file", find_when_it_is_over)

    assert look(client.files, output) == 12


def test_files_list_pages_and_filters_newest_first(make_client, tmp_path):
    here = make_client()
    files = [here.client.files.create(file=(f"No-{number}.jsonl", b"{}\n")) for number in range(5)]
    file = here.client.files.create(file=write_requests(tmp_path / "asked.jsonl", 2))
    batch = here.client.batches.create(input_file_id=file.id, via=None)
    output = here.client.batches.run(batch.id).output_file_id
    ids = [output, file.id, *(each.id for each in reversed(files))]

    page = here.client.files.list(limit=3)
    assert ([each.id for each in page.data], page.has_more) == (ids[:3], True)
    assert [each.id for each in page] == ids
    assert [each.id for each in here.client.files.list(after=ids[4])] == ids[5:]
    assert [each.id for each in here.client.files.list(order="asc", limit=2)] == ids[::-1]
    assert [each.id for each in here.client.files.list(purpose="batch_output")] == [output]
    assert [each.id for each in here.client.files.list(search="no-3")] == [files[3].id]
    with pytest.raises(NotFound, match="file-of-nobody"):
        here.client.files.list(after="file-of-nobody")


REFUSED = {
    "another purpose": ({"purpose": "batch_output"}, "purpose"),
    "no time at all": ({"expires_after": 0}, "expires_after"),
    "another anchor": ({"expires_after": {"anchor": "last_active_at", "seconds": 5}}, "anchor"),
    "no seconds": ({"expires_after": {"anchor": "created_at"}}, "expires_after"),
    "a broken gzip": ({"file": ("r.jsonl.gz", b"no gzip")}, "gzip"),
    "a path to nowhere": ({"file": "/nowhere/r.jsonl"}, "nowhere"),
    "an address outside the roots": ({"file": "file:///etc/passwd"}, "SOURCE_ROOTS"),
}


def test_file_creation_with_invalid_input_is_rejected_and_stores_nothing(make_client):
    client = make_client().client
    for options, told in REFUSED.values():
        with pytest.raises(InvalidInput, match=told):
            client.files.create(**{"file": CONTENT, **options})

        assert client.files.list().data == [], told
        assert client.services.store.list_objects("") == [], told


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_interrupted_upload_is_not_listed(writes, make_client):
    here = make_client()
    client, _ = failing_client(here.client.services, writes)

    with pytest.raises(StorageFault):
        client.files.create(file=CONTENT)

    assert here.client.files.list().data == []


def test_deleted_file_is_not_found(world_of_one):
    client, file = world_of_one
    client.files.delete(file.id)

    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFound, match=file.id):
            ask(file.id)
    assert client.services.store.list_objects("") == []


def test_file_check_reports_same_errors_as_batch_validation(make_client, tmp_path):
    client = make_client().client
    good = client.files.create(file=write_requests(tmp_path / "good.jsonl", 3))
    bad = client.files.create(file=b"{\n[]\n")

    found = client.files.validate(good.id)
    assert found.plan is not None
    assert (found.plan.total, found.plan.endpoint) == (3, "/v1/chat/completions")
    assert {error.code for error in client.files.validate(good.id, endpoint="/v1/embeddings").errors} == {
        "mismatched_url"
    }
    assert [error.line for error in client.files.validate(bad.id).errors] == [1, 2]
    with pytest.raises(InvalidInput, match="allowed are"):
        client.files.validate(good.id, endpoint="/v1/odd")
    with pytest.raises(NotFound):
        client.files.validate("file-1")

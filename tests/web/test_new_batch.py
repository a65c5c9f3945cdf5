"""A batch made with forms alone: errors beside the file, nothing kept of a bad one, nothing made twice."""

import gzip

import pytest
from helpers.api_server import ApiServer
from helpers.request_files import write_requests
from helpers.web_client import WebClient

from batchline.models.status import TERMINAL_STATUSES
from batchline.web import validation_cache

BAD = b'{"custom_id": "a",\n'


def held(served: ApiServer) -> object:
    """All files and batches, and what is on storage for files."""
    client = served.client
    stored = {info.key for info in client.services.store.list_objects("files/")}
    return [each.id for each in client.files.list()], [each.id for each in client.batches.list()], stored


@pytest.fixture
def good(tmp_path) -> bytes:
    return write_requests(tmp_path / "good.jsonl", 3).read_bytes()


def test_valid_upload_is_summarized_and_started(good, served: ApiServer, web_client: WebClient):
    page = web_client.upload("good.jsonl.gz", gzip.compress(good))
    assert page.answer.url.path == "/new"
    assert "good.jsonl is ready" in page.words()
    assert "Start 3 requests" in page.words()
    assert "gpt-4o-mini" in page.words()
    assert "USD" in page.words()

    fields = {"window": "90m", "metadata": "night = 1\n\nteam = a=b\n", "on_truncated": "fail"}
    started = web_client.send(page, "/batches", **fields)

    batch = served.client.batches.list().data[0]
    assert started.answer.url.path == f"/batches/{batch.id}"
    assert (batch.completion_window, batch.metadata) == ("90m", {"night": "1", "team": "a=b"})
    assert batch.model_dump()["options"] == {"on_truncated": "fail"}
    assert served.client.batches.wait(batch.id, timeout_s=60).request_counts.completed == 3


def test_invalid_upload_shows_all_errors_and_stores_nothing(good, served: ApiServer, web_client: WebClient):
    before = held(served)
    page = web_client.upload("bad.jsonl", good + BAD + good.splitlines()[0] + b"\n")

    assert page.status == 400
    assert "2 things are wrong with bad.jsonl" in page.words()
    assert [row[0] for row in page.tables[0]] == ["Line", "4", "5"]
    assert "duplicate_custom_id" in page.tables[0][2][2]
    assert page.form("/new").buttons == 1
    assert held(served) == before


def test_upload_with_many_errors_lists_first_errors_and_total(start_api):
    served = start_api(max_reported_errors=50)
    with WebClient(served.url.removesuffix("/v1")) as web_client:
        page = web_client.upload("bad.jsonl", BAD * 80)
    assert "80 things are wrong" in page.words()
    assert len(page.tables[0]) == 51
    assert "31 more errors are not listed" in page.words()


def test_upload_for_other_endpoint_reports_mismatched_url(good, web_client: WebClient):
    page = web_client.upload("good.jsonl", good, endpoint="/v1/embeddings")
    assert page.tables[0][1][2] == "mismatched_url"
    assert ("selected", None) in page.attributes
    assert web_client.upload("good.jsonl", good, endpoint="/v1/odd").status == 400


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("r.jsonl", b"", "no request"), ("r.jsonl.gz", b"no gzip", "gz"), ("r.jsonl.zst", b"no zstd", "zst")],
)
def test_unreadable_upload_is_rejected_with_reason(name, content, words, served: ApiServer, web_client: WebClient):
    before = held(served)
    page = web_client.upload(name, content)
    assert page.status == 400
    assert words in page.words()
    assert page.form("/new").buttons == 1
    assert held(served) == before


def test_upload_form_without_file_is_rejected(web_client: WebClient):
    answer = web_client.http.post("/new", data={"purpose": "batch"}, headers={"Origin": web_client.root})
    assert (answer.status_code, "multipart" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": "soon"}, "completion_window is"),
        ({"window": "30d"}, "allowed is"),
        ({"max_identical_failures": "0"}, "max_identical_failures: Input should be greater than or equal to 1"),
        ({"on_limit": "wait"}, "on_limit: Input should be 'pause' or 'stop'"),
        ({"metadata": "night"}, "line 1 is not a pair"),
        ({"metadata": "a = 1\na = 2"}, "a second time"),
        ({"metadata": "\n".join(f"k{n} = v" for n in range(17))}, "at most 16"),
        ({"metadata": f"a = {'x' * 513}"}, "513"),
    ],
)
def test_invalid_form_field_shows_error_and_keeps_input(
    fields, words, good, served: ApiServer, web_client: WebClient
):
    sent = {"window": "6h", "metadata": "team = red", **fields}
    before = served.client.batches.list().data
    page = web_client.send(web_client.upload("good.jsonl", good), "/batches", **sent)

    assert (page.status, words in page.words()) == (400, True)
    again = page.form("/batches").fields
    assert again["window"] == sent["window"]
    assert sent["metadata"].splitlines()[0] in page.words()
    assert served.client.batches.list().data == before


def test_form_sent_twice_creates_one_batch(good, served: ApiServer, web_client: WebClient):
    page = web_client.upload("good.jsonl", good)
    first, second = web_client.send(page, "/batches"), web_client.send(page, "/batches")
    assert first.answer.url == second.answer.url
    newest = served.client.batches.list().data[:2]
    assert [first.answer.url.path.endswith(each.id) for each in newest] == [True, False]


def test_validation_result_of_upload_is_cached(good, served: ApiServer, web_client: WebClient, monkeypatch):
    page = web_client.upload("good.jsonl", good)
    monkeypatch.setattr(type(served.client.files), "validate", lambda *_, **__: 1 / 0)
    assert "good.jsonl is ready" in web_client.open(page.answer.url.path, **dict(page.answer.url.params)).words()


def test_large_upload_is_validated_by_batch(good, served: ApiServer, web_client: WebClient, monkeypatch):
    monkeypatch.setattr(validation_cache, "MAX_CHECKED_BYTES", 10)
    page = web_client.upload("large.jsonl", good + BAD)
    assert "too much to check while you wait" in page.words()

    started = web_client.send(page, "/batches", endpoint="/v1/chat/completions")

    batch = served.client.batches.list().data[0]
    assert served.client.batches.wait(batch.id, timeout_s=60).status == "failed"
    assert "invalid_json_line" in web_client.open(started.answer.url.path).words()


def test_stored_input_file_can_be_run_again_but_output_file_cannot(good, served: ApiServer, web_client: WebClient):
    started = web_client.send(web_client.upload("good.jsonl", good), "/batches")
    batch = served.client.batches.list().data[0]
    over = served.client.batches.wait(batch.id, timeout_s=60)
    assert over.status in TERMINAL_STATUSES

    again = web_client.open(started.answer.url.path)
    (link,) = (link for link in again.links() if link.startswith("/new?"))
    assert "good.jsonl is ready" in web_client.open(link).words()
    assert web_client.open(f"/new?file={over.output_file_id}").status == 400


def test_stored_file_with_errors_is_not_deleted(served: ApiServer, web_client: WebClient):
    file = served.client.files.create(file=("stored.jsonl", BAD))
    page = web_client.open("/new", file=file.id)
    assert "One thing is wrong with stored.jsonl" in page.words()
    assert served.client.files.retrieve(file.id) == file

"""Methods: HEAD, and which methods a refusal names."""

import pytest
from helpers.api_server import ENDPOINT, ApiServer, wait_for_end
from helpers.request_files import write_requests


def test_head_request_returns_get_headers_without_body(served: ApiServer, tmp_path):
    client, http = served.openai(), served.http()
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 2_000), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    wait_for_end(client, batch.id)

    for path in (
        "/healthz",
        "/v1/files",
        f"/v1/files/{file.id}",
        f"/v1/files/{file.id}/content",
        f"/v1/files/{file.id}/content?limit=3",
        f"/v1/batches/{batch.id}",
        f"/v1/batches/{batch.id}/results",
        "/v1/batches/batch-none",
        "/openapi.json",
    ):
        head, got = http.head(path), http.get(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        names = ("content-type", "content-length", "etag", "x-incomplete", "x-last-line", "content-disposition")
        assert [head.headers.get(name) for name in names] == [got.headers.get(name) for name in names], path


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("PATCH", "/v1/files/file-1", "DELETE, GET, HEAD"),
        ("DELETE", "/v1/batches", "GET, HEAD, POST"),
        ("POST", "/v1/batches/batch-1", "DELETE, GET, HEAD"),
        ("GET", "/v1/batches/batch-1/cancel", "POST"),
        ("HEAD", "/v1/batches/batch-1/cancel", "POST"),
    ],
)
def test_unsupported_method_returns_405_with_allowed_methods(method, path, allowed, served: ApiServer):
    answer = served.http().request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_batch_model_is_set_only_if_all_requests_share_it(served: ApiServer, tmp_path):
    client = served.openai()
    text = write_requests(tmp_path / "r.jsonl", 3).read_text()
    contents = {"gpt-4o-mini": text, None: text + text.replace("request-", "other-").replace("4o-mini", "4o")}

    for model, content in contents.items():
        file = client.files.create(file=("r.jsonl", content.encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        assert wait_for_end(client, batch.id).model == model
        assert client.batches.list().data[0].model == model
        assert served.client.batches.retrieve(batch.id).model == model

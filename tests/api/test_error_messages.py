"""Error messages: they name the wrong parameter once and say what to write instead."""

import json
import re

import openai
import pytest
from helpers.api_server import ENDPOINT, ApiServer, wait_for_end

WRONG = {
    "a field too many": ("POST", "/v1/batches", {"window": "1h"}, "Unknown parameter: 'window'."),
    "a field too few": ("POST", "/v1/batches", {"endpoint": None}, "Missing required parameter: 'endpoint'."),
    "a wrong window": (
        "POST",
        "/v1/batches",
        {"completion_window": "1 day"},
        "completion_window is '1 day'; write a number and m, h or d, such as '90m', '24h' or '7d'",
    ),
    "a wrong value within": (
        "POST",
        "/v1/batches",
        {"metadata": {"a": 1}},
        "metadata.a: Input should be a valid string",
    ),
    "a parameter misspelt": ("GET", "/v1/batches?limits=3", None, "Unknown parameter: 'limits'."),
    "no text": (
        "POST",
        "/v1/batches",
        {"metadata": {"a": "\ud800"}},
        "metadata: '\\ud800' is not valid text: it has half of a surrogate pair",
    ),
    "no text as a name": (
        "POST",
        "/v1/batches",
        {"input_file_id": "\ud800"},
        "input_file_id: '\\ud800' is not valid text: it has half of a surrogate pair",
    ),
    "no model": ("GET", "/v1/models/", None, "no upstream serves the model ''"),
    "a slash too many": (
        "GET",
        "/v1/files/",
        None,
        "Invalid URL (GET /v1/files/); see /openapi.json",
    ),
    "nothing to include": (
        "GET",
        "/v1/batches?include=analytics,usage",
        None,
        "include has 'usage'; only 'analytics' is known",
    ),
    "nothing to include in one": (
        "GET",
        "/v1/batches/batch-1?include=x",
        None,
        "include has 'x'; only 'analytics' is known",
    ),
    "no such path": (
        "POST",
        "/v1/chat/completions",
        {},
        "Invalid URL (POST /v1/chat/completions); see /openapi.json",
    ),
}


@pytest.mark.parametrize(("method", "path", "changes", "words"), WRONG.values(), ids=WRONG)
def test_error_message_describes_invalid_request(method, path, changes, words, served: ApiServer):
    good = {"input_file_id": "file-none", "endpoint": ENDPOINT}
    body = None if changes is None else {name: value for name, value in {**good, **changes}.items() if value}

    content = None if body is None else json.dumps(body)
    answer = served.http().request(method, path, content=content, headers={"content-type": "application/json"})

    assert answer.json()["error"]["message"] == words


def test_unknown_form_field_error_lists_valid_fields(served: ApiServer):
    form = {"purpose": "batch", "expires_after": '{"seconds": 60}'}

    answer = served.http().post("/v1/files", data=form, files={"file": ("r.jsonl", b"{}")})

    assert answer.json()["error"]["message"] == (
        "Unknown parameter: 'expires_after'; the form may have file, purpose, expires_after[seconds], "
        "expires_after[anchor]"
    )


def test_cancel_error_names_batch_status(served: ApiServer):
    client = served.openai()
    file = client.files.create(file=b"{}\n", purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    wait_for_end(client, batch.id)

    answer = served.http().post(f"/v1/batches/{batch.id}/cancel")

    assert answer.json()["error"]["message"] == f"batch {batch.id} is failed and cannot be cancelled"


def test_responses_have_unique_request_id_readable_by_openai_client(served: ApiServer):
    client = served.openai()

    file = client.files.create(file=b"{}\n", purpose="batch")
    with pytest.raises(openai.NotFoundError) as missing:
        client.batches.retrieve("batch-none")

    ids = [file._request_id, missing.value.request_id, served.http().get("/openapi.json").headers["x-request-id"]]
    assert all(re.fullmatch("req_[0-9a-f]{32}", each or "") for each in ids)
    assert len({*ids}) == 3


def test_server_error_hides_details_and_is_logged_with_request_id(
    served: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(type(served.client.files), "retrieve", broken)

    answer = served.http().get("/v1/files/file-1")

    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == f"the server failed; its log has the details of {request_id}"
    assert f"{request_id}: a secret detail" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": f"multipart/form-data; boundary={'b' * 300}"}, 400),
        ({"host": "["}, 403),
        ({"origin": "http://["}, 403),
    ],
    ids=["boundary", "host", "origin"],
)
def test_malformed_headers_return_client_error(headers, status, served: ApiServer):
    answer = served.http().post("/v1/files", content=b"--b--", headers=headers)

    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")

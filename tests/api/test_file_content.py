"""Content of files: ranges of bytes, stretches of lines, and files of batches that still run."""

import asyncio
import json
import re
from itertools import product

import httpx
import pytest
from helpers.api_server import ENDPOINT, ApiServer, wait_for_end
from helpers.polling import until
from helpers.request_files import write_requests

from batchline.api import create_app

LINES = [b'{"custom_id": "request-%d", "text": "request-1"}\n' % number for number in range(300)]
CONTENT = b"".join(LINES)
SIZE = len(CONTENT)
NAME = 'ä ";.jsonl'


@pytest.fixture
def path(served: ApiServer) -> str:
    return f"/v1/files/{served.client.files.create(file=(NAME, CONTENT)).id}/content"


def test_file_content_has_size_and_filename_headers(served: ApiServer, path):
    answer = served.http().get(path)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-incomplete"] == "false"
    disposition = answer.headers["content-disposition"]
    assert disposition == "attachment; filename=\"_ _;.jsonl\"; filename*=UTF-8''%C3%A4%20%22%3B.jsonl"


RANGES = {
    "bytes=0-0": slice(0, 1),
    "bytes=10-99": slice(10, 100),
    "bytes=10-": slice(10, None),
    "bytes=-10": slice(-10, None),
    f"bytes=-{SIZE + 1}": slice(0, None),
    f"bytes=5-{SIZE + 100}": slice(5, None),
}


def test_byte_range_returns_206_with_content_range(served: ApiServer, path):
    client = served.http()
    for asked, place in RANGES.items():
        answer = client.get(path, headers={"Range": asked})

        expected = CONTENT[place]
        start = SIZE - len(expected) if place.stop is None else place.start
        assert (answer.status_code, answer.content) == (206, expected), asked
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/{SIZE}"


def test_byte_range_past_end_returns_416_with_file_size(served: ApiServer, path):
    client = served.http()
    for asked in (f"bytes={SIZE}-", "bytes=99999999-", "bytes=-0"):
        answer = client.get(path, headers={"Range": asked})

        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}"), asked
        assert answer.json()["error"]["message"]


def test_invalid_or_multiple_byte_ranges_return_whole_file(served: ApiServer, path):
    client = served.http()
    for asked in ("bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,5-6", "lines=0-1", f"bytes={'9' * 40}-"):
        answer = client.get(path, headers={"Range": asked})

        assert (answer.status_code, len(answer.content)) == (200, SIZE), asked


def test_byte_range_with_stale_if_range_returns_whole_file(served: ApiServer, path):
    client = served.http()
    tag = client.head(path).headers["etag"]

    for condition, status in ((tag, 206), ('"x"', 200), (f"W/{tag}", 200), ("Sat, 28 Nov 2026 20:00:00 GMT", 200)):
        answer = client.get(path, headers={"Range": "bytes=0-1", "If-Range": condition})
        assert (answer.status_code, len(answer.content)) == (status, 2 if status == 206 else SIZE), condition


GZIP = {"gzip, deflate": True, "br;q=1.0, gzip;q=0.8": True, "gzip;q=0": False, "identity": False, "": False}


def test_content_for_remote_clients_that_accept_gzip_is_compressed(served: ApiServer, path):
    app = create_app(served.client)
    ranged = {"Range": "bytes=0-9", "Accept-Encoding": "gzip"}

    async def get(client: str, headers: dict[str, str], query: str = "") -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get(path + query, headers=headers)

    async def work() -> None:
        key = {"Authorization": f"Bearer {served.key('boss', role='manager')}"}
        for accepted, is_packed in GZIP.items():
            for query in ("", "?limit=300"):
                answer = await get("192.0.2.7", key | {"Accept-Encoding": accepted}, query)
                packing = answer.headers.get("content-encoding")
                assert (packing, answer.content) == ("gzip" if is_packed else None, CONTENT), (accepted, query)
        here = await get("127.0.0.1", key | {"Accept-Encoding": "gzip"})
        assert ("content-encoding" in here.headers, here.headers["content-length"]) == (False, str(SIZE))
        part = await get("192.0.2.7", key | ranged)
        assert (part.status_code, part.content, "content-encoding" in part.headers) == (206, CONTENT[:10], False)
        packed = await get("192.0.2.7", key | {"Accept-Encoding": "gzip"})
        assert packed.headers["etag"] != here.headers["etag"]

    asyncio.run(work())


def test_content_with_matching_etag_returns_304(served: ApiServer, path):
    client = served.http()
    tag = client.head(path).headers["etag"]

    for known, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
        answer = client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, len(answer.content)) == (status, SIZE if status == 200 else 0), known


def test_batch_retry_changes_output_etag_but_not_file_id(start_api, tmp_path):
    served = start_api(simulator={"server_error": 0.5}, upstream={"max_attempts": 1})
    client, http = served.openai(), served.http()
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 20), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    path = f"/v1/files/{wait_for_end(client, batch.id).output_file_id}/content"
    before = http.get(path)

    http.post(f"/v1/batches/{batch.id}/retry").raise_for_status()
    wait_for_end(client, batch.id)

    resumed = {"Range": f"bytes={len(before.content)}-", "If-Range": before.headers["etag"]}
    after = http.get(path, headers=resumed)
    assert after.status_code == 200
    assert after.content != before.content
    assert after.headers["etag"] != before.headers["etag"]


@pytest.mark.parametrize("name", ["skip", "offset"])
def test_line_query_applies_skip_and_limit(name, served: ApiServer, path):
    client = served.http()
    for skip, limit in product([0, 1, 299, 300, 301, 10**15], [None, 1, 7, 300, 10**15]):
        answer = client.get(path, params={name: skip} | ({} if limit is None else {"limit": limit}))

        expected = LINES[skip:] if limit is None else LINES[skip : skip + limit]
        assert answer.content == b"".join(expected), (skip, limit)
        assert answer.headers["x-last-line"] == str(min(300, skip + len(expected)))


def test_line_search_matches_custom_ids_and_can_be_paged(served: ApiServer, path):
    client = served.http()
    expected = [line for number, line in enumerate(LINES) if "st-1" in f"request-{number}"]

    assert client.get(path, params={"search": "ST-1"}).content == b"".join(expected)
    found, skip = [], 0
    while lines := (answer := client.get(path, params={"search": "st-1", "skip": skip, "limit": 4})).content:
        found += lines.splitlines(keepends=True)
        skip = int(answer.headers["x-last-line"])
    assert found == expected
    assert client.get(path, params={"search": "text"}).content == b""


def test_line_search_skips_overlong_lines_but_counts_them(served: ApiServer, monkeypatch):
    monkeypatch.setattr("batchline.client.line_ranges.MAX_SEARCHED_BYTES", 2**20)
    client = served.http()
    sizes = (1, 2**23, 1)
    lines = [
        b'{"custom_id": "st-%d", "body": "%b"}\n' % (number, b"x" * size) for number, size in enumerate(sizes)
    ]
    path = f"/v1/files/{served.client.files.create(file=b''.join(lines)).id}/content"

    assert client.get(path, params={"search": "st-"}).content == lines[0] + lines[2]
    answer = client.get(path, params={"search": "st-", "limit": 2})
    assert (answer.content, answer.headers["x-last-line"]) == (lines[0] + lines[2], "3")
    assert client.get(path, params={"search": "st-1"}).content == b""


def test_line_query_on_non_jsonl_content_splits_at_newlines(served: ApiServer):
    client = served.http()
    for content in (b"", b"\n", b"no json\n{}", b'{"custom_id": 1}\n\n{"custom_id": "a"}'):
        path = f"/v1/files/{served.client.files.create(file=content).id}/content"
        lines = content.splitlines(keepends=True)

        for skip, limit in product(range(4), (1, 2, 9)):
            answer = client.get(path, params={"skip": skip, "limit": limit})
            assert answer.content == b"".join(lines[skip : skip + limit]), (content, skip, limit)
        assert client.get(path).content == content


def test_output_of_running_batch_can_be_polled_without_duplicate_lines(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 4}, chunk_requests=5)
    client, http = served.openai(), served.http()
    prompt = lambda n: f"{n} simulate:status=400" if n % 3 == 0 else f"{n}?"  # noqa: E731
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 120, prompt=prompt), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).output_file_id)
    output = client.batches.retrieve(batch.id).output_file_id

    got, looks, last, incomplete = b"", 0, 0, "true"
    while incomplete == "true":
        answer = http.get(f"/v1/files/{output}/content", params={"offset": last})
        got, looks = got + answer.content, looks + bool(answer.content)
        last, incomplete = int(answer.headers["x-last-line"]), answer.headers["x-incomplete"]
        whole = http.get(f"/v1/files/{output}/content", headers={"Range": "bytes=0-"})
        if whole.status_code == 206 and whole.headers["x-incomplete"] == "true":
            assert re.fullmatch(r"bytes 0-\d+/\*", whole.headers["content-range"])

    wait_for_end(client, batch.id)
    answer = http.get(f"/v1/files/{output}/content")
    assert got == answer.content
    assert looks > 3
    assert last == int(answer.headers["x-last-line"]) == got.count(b"\n") == 80
    errors = client.batches.retrieve(batch.id).error_file_id
    assert http.get(f"/v1/files/{errors}/content").headers["x-last-line"] == "40"


def test_results_are_in_input_order_and_accept_filters(start_api, tmp_path):
    served = start_api(upstream={"max_attempts": 1})
    client, http = served.openai(), served.http()
    prompt = lambda n: f"{n} simulate:status=400" if n % 3 == 0 else f"{n}?"  # noqa: E731
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 250, prompt=prompt), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    wait_for_end(client, batch.id)

    def results(**query: object) -> list[dict[str, object]]:
        answer = http.get(f"/v1/batches/{batch.id}/results", params=query)
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    assert [item["custom_id"] for item in results()] == [f"request-{number}" for number in range(250)]
    assert len(results(status="failed")) == 84
    assert [item["custom_id"] for item in results(search="st-24", skip=1, limit=2)] == [
        "request-240",
        "request-241",
    ]
    failed = results(status="failed", limit=1)[0]
    assert set(failed) == {"id", "custom_id", "model", "input_body", "response_body", "error", "status"}
    assert http.get(f"/v1/batches/{batch.id}/results", params={"status": "lost"}).status_code == 400

    assert http.get(f"/v1/batches/{batch.id}").json().get("analytics") is None
    included = http.get(f"/v1/batches/{batch.id}", params={"include": "analytics"}).json()["analytics"]
    assert included["total_requests"] == 166
    assert http.get(f"/v1/batches/{batch.id}/analytics").json() == included
    retried = http.post(f"/v1/batches/{batch.id}/retry-requests", json={"request_ids": [failed["id"]]}).json()
    assert (retried["status"], retried["request_counts"]["failed"]) == ("in_progress", 83)
    wait_for_end(client, batch.id)
    assert http.post(f"/v1/batches/{batch.id}/retry").json()["request_counts"]["failed"] == 0
    wait_for_end(client, batch.id)
    marked = http.post(f"/v1/batches/{batch.id}/retry", json={"mark": "truncated"})
    assert (marked.status_code, marked.json()["error"]["message"]) == (
        409,
        f"batch {batch.id} has nothing to retry: no completed request is marked truncated (none has a mark)",
    )
    assert http.post(f"/v1/batches/{batch.id}/retry", json={"mark": "lost"}).status_code == 400
    assert http.delete(f"/v1/batches/{batch.id}").json() == {"id": batch.id, "object": "batch", "deleted": True}
    assert http.get(f"/v1/batches/{batch.id}/results").status_code == 404


def test_cost_estimate_accepts_only_stored_file_ids(start_api, tmp_path):
    served = start_api(prices={"gpt-4o-mini": {"input": 1, "output": 2}})
    path = write_requests(tmp_path / "r.jsonl", 10)
    file = served.client.files.create(file=path)

    estimate = served.http().get(f"/v1/files/{file.id}/cost-estimate").json()

    assert (estimate["requests"], estimate["without_limit"]) == (10, 10)
    assert "least" in estimate
    assert "most" not in estimate
    assert estimate["file_id"] == file.id
    totals = {"total_requests", "total_estimated_input_tokens", "total_estimated_output_tokens"}
    assert {name: estimate[name] for name in totals} == {
        "total_requests": 10,
        "total_estimated_input_tokens": estimate["input_tokens"],
        "total_estimated_output_tokens": 0,
    }
    assert estimate["total_estimated_cost"] == estimate["least"]
    (model,) = estimate["models"]
    assert (model["model"], model["request_count"], model["estimated_cost"]) == (
        "gpt-4o-mini",
        10,
        estimate["least"],
    )
    assert (model["estimated_input_tokens"], model["estimated_output_tokens"]) == (estimate["input_tokens"], 0)
    for other in (str(path).replace("/", "%2F"), "r.jsonl", "..%2Fr.jsonl"):
        assert served.http().get(f"/v1/files/{other}/cost-estimate").status_code == 404


def test_analytics_of_running_batch_cover_finished_requests(start_api, tmp_path):
    served = start_api(chunk_requests=4, grace_s=0.1)
    prompt = lambda n: f"{n} simulate:hanging" if n == 9 else f"{n}?"  # noqa: E731
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 10, prompt=prompt))
    batch = served.client.batches.create(input_file_id=file.id)

    def analytics() -> dict[str, object]:
        return served.http().get(f"/v1/batches/{batch.id}/analytics").json()

    assert "total_requests" in analytics()  # none of them as yet, perhaps
    until(lambda: analytics()["total_requests"] == 9)  # of two chunks that are finished, and one that is not
    far = analytics()
    shown = served.http().get(f"/v1/batches/{batch.id}", params={"include": "analytics"}).json()
    assert (shown["status"], shown["analytics"]) == ("in_progress", far)
    assert shown["usage"]["total_tokens"] == far["total_tokens"]
    assert "usage" not in served.http().get(f"/v1/batches/{batch.id}").json()
    served.client.batches.cancel(batch.id)
    served.client.batches.wait(batch.id, timeout_s=60)

    assert far["total_tokens"] > 0
    assert analytics() == far

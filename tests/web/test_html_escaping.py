"""HTML escaping of foreign text in names, prompts, responses, errors and metadata on every page."""

import json

import pytest
from helpers.api_server import ENDPOINT, ApiServer
from helpers.scripted_server import Received, ScriptedServer, raw
from helpers.web_client import WebClient, WebPage

from batchline.web.message_text import MAX_CHARACTERS

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></pre></bdi>&lt;\u202e{{ '7' * 9 }}\ud800"
TAGS = ("<script>alert", "<img", "</pre></bdi>&lt;", "777777777")


def answer_to(request: Received):
    """A hostile answer, or a hostile refusal."""
    if b"refuse" in request.body:
        body, status = {"error": {"message": HOSTILE, "code": HOSTILE}}, 400
    else:
        message = {"role": HOSTILE, "content": HOSTILE, "tool_calls": [HOSTILE]}
        body, status = {"choices": [{"message": message}], "model": HOSTILE, HOSTILE: HOSTILE}, 200
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return raw(head.encode() + content, closes=False)


def line(custom_id: str, prompt: str) -> bytes:
    messages = [
        {"role": HOSTILE, "content": prompt},
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]
    body = {"model": HOSTILE.replace("\ud800", ""), "messages": messages, HOSTILE: HOSTILE}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}).encode() + b"\n"


@pytest.fixture(scope="module")
def hostile_upstream():
    server = ScriptedServer(answer_to).start()
    yield f"{server.base_url}/v1"
    server.stop()


@pytest.fixture
def hostile(start_api, hostile_upstream) -> ApiServer:
    return start_api(base_url=hostile_upstream)


def assert_tame(page: WebPage, *, is_ones_own: bool = False, is_shown: bool = True) -> None:
    assert page.status < 500
    assert "alert(1)" in page.html or not is_shown
    for tag in TAGS:
        assert tag not in page.html, tag
    assert is_ones_own or "\u202e" not in page.html  # what somebody typed stays as it is in its field


def test_hostile_batch_content_is_escaped_on_every_page(hostile: ApiServer):
    text = HOSTILE.replace("\ud800", "")
    content = line(text, HOSTILE) + line(f"{text} 2", f"refuse {HOSTILE}")
    file = hostile.client.files.create(file=(text.replace("/", "_"), content))
    metadata = {"<b>a</b>": text, text[:60]: "x"}
    batch = hostile.client.batches.create(input_file_id=file.id, metadata=metadata)
    over = hostile.client.batches.wait(batch.id, timeout_s=60)
    assert (over.request_counts.completed, over.request_counts.failed) == (1, 1)

    with WebClient(hostile.url.removesuffix("/v1")) as web_client:
        paths = (
            *(
                "/",
                "/files",
                f"/batches/{batch.id}",
                f"/batches/{batch.id}/results",
                f"/batches/{batch.id}/delete",
            ),
            *(f"/files/{file.id}", f"/files/{over.output_file_id}", f"/files/{file.id}/delete"),
            f"/new?file={file.id}",
        )
        for path in paths:
            page = web_client.open(path)
            assert page.status == 200
            assert_tame(page)
        assert "&lt;script&gt;" in web_client.http.get(f"/batches/{batch.id}/report.html").text


def test_hostile_form_input_and_queries_are_escaped(hostile: ApiServer):
    text = HOSTILE.replace("\ud800", "")
    bad = json.dumps({"custom_id": text, "method": text, "url": text, "body": {"model": text}}).encode()
    with WebClient(hostile.url.removesuffix("/v1")) as web_client:
        assert_tame(web_client.upload(text.replace('"', "'"), bad))
        good = web_client.upload("good.jsonl", line("a", "b"))
        assert_tame(web_client.send(good, "/batches", window=text, metadata=text), is_ones_own=True)
        for query in ("search", "status", "member", "created_from", "after", "order"):
            page = web_client.open("/", **{query: text})
            assert_tame(page, is_ones_own=True, is_shown=query == "search")
        assert_tame(web_client.open("/files", search=text), is_ones_own=True)
        assert_tame(web_client.open(f"/batches/{text.replace('/', '-').replace('?', '')}"))


def test_long_response_is_truncated_with_link_to_full_text(start_api, hostile_upstream):
    hostile = start_api(base_url=hostile_upstream)
    long = "x" * (MAX_CHARACTERS + 5_000)
    file = hostile.client.files.create(file=line("a", long))
    batch = hostile.client.batches.create(input_file_id=file.id)
    hostile.client.batches.wait(batch.id, timeout_s=60)
    with WebClient(hostile.url.removesuffix("/v1")) as web_client:
        page = web_client.open(f"/batches/{batch.id}/results")
        assert page.size < 5 * MAX_CHARACTERS
        assert long not in page.html
        (whole,) = (link for link in page.links() if "limit=1" in link)
        assert long in web_client.http.get(whole.replace("&amp;", "&")).text

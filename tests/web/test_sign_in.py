"""Access to the pages: keys in cookies, separation of members, and cross-site requests."""

import json
import re
import time

import httpx
import pytest
from helpers.api_server import ENDPOINT, ApiServer, root_of, wait_for_end
from helpers.request_files import write_requests
from helpers.web_client import HTML, WebClient

from batchline.api import auth
from batchline.client.api_keys import ApiKeys
from batchline.web import batch_list

OF_A_BATCH = (
    *("/batches/{batch}", "/batches/{batch}/results", "/batches/{batch}/results.jsonl", "/batches/{batch}/delete"),
    *("/batches/{batch}/report.html", "/batches/{batch}/output.jsonl", "/files/{file}", "/files/{file}/content"),
    *("/files/{file}/delete", "/files/{output}/content", "/new?file={file}"),
)
ACTS = (
    ("/batches/{batch}/cancel", {}),
    ("/batches/{batch}/retry", {}),
    ("/batches/{batch}/retry-requests", {"request_id": "req-1"}),
    ("/batches/{batch}/delete", {}),
    ("/files/{file}/delete", {}),
    ("/batches", {"file": "{file}", "endpoint": ENDPOINT, "window": "24h"}),
)
FOREIGN = {
    "another origin": {"Origin": "http://evil.example"},
    "no origin that could be told": {"Origin": "null"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "another site, as the browser says": {"Sec-Fetch-Site": "cross-site"},
    "a neighbour": {"Sec-Fetch-Site": "same-site"},
    "both that disagree": {"Sec-Fetch-Site": "cross-site", "Origin": "here"},
    "nothing that tells": {},
}


def batch_of(served: ApiServer, token: str, folder) -> dict[str, str]:
    """Ids of a batch that the key's member has, with its files."""
    client = served.openai(token)
    file = client.files.create(file=write_requests(folder / "r.jsonl", 2), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    over = wait_for_end(client, batch.id)
    return {"batch": batch.id, "file": file.id, "output": str(over.output_file_id)}


def test_pages_show_members_their_own_objects_and_managers_all(keyed: ApiServer, tmp_path):
    alices = batch_of(keyed, keyed.key("alice"), tmp_path)
    bob, boss = WebClient(root_of(keyed.url)), WebClient(root_of(keyed.url))
    with bob, boss:
        bob.sign_in(keyed.key("bob"))
        boss.sign_in(keyed.key("boss", "manager"))
        for path in OF_A_BATCH:
            assert boss.http.get(path.format(**alices)).status_code == 200, path
            theirs = bob.open(path.format(**alices))
            none = bob.open(
                path.format(**{name: re.sub("[0-9a-f]{32}", "0" * 32, alices[name]) for name in alices})
            )
            assert (theirs.status, none.status) == (404, 404), path
            assert re.sub("[0-9a-f]{32}", "", theirs.html) == re.sub("[0-9a-f]{32}", "", none.html)
        for path, fields in ACTS:
            sent = {name: value.format(**alices) for name, value in fields.items()}
            assert bob.post(path.format(**alices), **sent).status == 404, path
        assert "r.jsonl" not in bob.open("/").html + bob.open("/files").html
        assert "r.jsonl" in boss.open("/").html
        members = {each.name: each.id for each in ApiKeys(keyed.client).members()}
        assert "r.jsonl" in boss.open("/", member=members["alice"]).html
        assert "r.jsonl" not in boss.open("/", member=members["bob"]).html
        assert "alice" not in bob.open("/").html
    assert keyed.client.batches.retrieve(alices["batch"]).status == "completed"


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_cross_origin_post_is_rejected(headers, served: ApiServer, web_client: WebClient, tmp_path):
    file = served.client.files.create(file=b"{}\n")
    told = {name: value.replace("here", web_client.root) for name, value in headers.items()}

    for path in (f"/files/{file.id}/delete", "/sign-out", "/sign-in", "/new"):
        answer = web_client.http.post(path, headers=told, data={"key": "x"})
        assert answer.status_code == 403, path
        assert "nothing was done" in answer.text

    assert served.client.files.retrieve(file.id) == file


def test_same_origin_post_with_only_one_origin_header_is_accepted(served: ApiServer, web_client: WebClient):
    for headers in ({"Origin": web_client.root}, {"Sec-Fetch-Site": "same-origin"}):
        file = served.client.files.create(file=b"{}\n")
        assert web_client.http.post(f"/files/{file.id}/delete", headers=headers).status_code == 200
        assert file not in served.client.files.list().data


def test_pages_without_keys_reject_foreign_host_header(web_client: WebClient):
    for path in ("/", "/files", "/sign-in", "/new"):
        answer = web_client.http.get(path, headers={"Host": "rebound.example"})
        assert answer.status_code == 403
        assert "localhost" in answer.text


def test_sign_in_sets_cookie_and_redirects_to_requested_page(keyed: ApiServer, guest: WebClient):
    token = keyed.key("alice")

    asked = guest.open("/files?search=x")
    assert asked.answer.url.path == "/sign-in"
    assert asked.form("/sign-in").fields["next"] == "/files?search=x"
    wrong = guest.send(asked, "/sign-in", key="bl-wrong")
    assert (wrong.status, "This key is unknown" in wrong.html) == (401, True)
    answer = guest.http.post(
        "/sign-in", data={"key": token, "next": "/files?search=x"}, headers={"Origin": guest.root}
    )

    assert (answer.url.path, answer.url.query) == ("/files", b"search=x")
    (cookie,) = answer.history[0].headers.get_list("set-cookie")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {*cookie.split("; ")}
    assert "Max-Age" not in cookie
    assert "Secure" not in cookie
    assert "alice" in answer.text
    assert token not in answer.text + str(answer.url)


def test_sign_in_over_https_sets_secure_cookie(keyed: ApiServer, guest: WebClient):
    host = httpx.URL(guest.root).netloc.decode()
    answer = guest.http.post(
        "/sign-in",
        data={"key": keyed.key("alice")},
        headers={"Origin": f"https://{host}"},
        follow_redirects=False,
    )
    assert "; Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nX: y", ""]
)
def test_sign_in_redirects_only_within_site(place, keyed: ApiServer, guest: WebClient):
    token = keyed.key("alice")
    sent = {"key": token, "next": place}
    answer = guest.http.post("/sign-in", data=sent, headers={"Origin": guest.root}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_session_ends_on_sign_out_or_key_revocation(keyed: ApiServer, guest: WebClient):
    token = keyed.key("alice")
    guest.sign_in(token)
    out = guest.send(guest.open("/"), "/sign-out")
    assert (out.answer.url.path, dict(guest.http.cookies)) == ("/sign-in", {})

    guest.sign_in(token)
    key = ApiKeys(keyed.client).list()[0]
    ApiKeys(keyed.client).revoke(key.id)
    time.sleep(auth.CACHE_TTL_S)

    ended = guest.open("/")
    assert ended.answer.url.path == "/sign-in"
    assert "no longer valid" in ended.html
    assert dict(guest.http.cookies) == {}


def test_sign_in_from_cross_site_link_reloads_once(keyed: ApiServer, guest: WebClient):
    first = guest.http.get("/sign-in?next=/files", headers={"Sec-Fetch-Site": "cross-site"})
    again = guest.http.get("/sign-in?next=/files", headers={"Sec-Fetch-Site": "same-origin"})
    assert ['http-equiv="refresh"' in answer.text for answer in (first, again)] == [True, False]


def test_key_limits_apply_to_pages_and_api_together(keyed: ApiServer, guest: WebClient):
    token = keyed.key("alice", requests_per_minute=4, max_upload_bytes=1_000)
    guest.sign_in(token)  # counts for the key, and again for the page that it leads to
    keyed.http(token).get("/v1/batches")

    large = guest.http.post(
        "/new",
        data={"purpose": "batch"},
        files={"file": ("r.jsonl", b"x" * 2_000)},
        headers={"Origin": guest.root},
    )
    over = guest.open("/")

    assert (large.status_code, "1000 bytes" in large.text) == (413, True)
    assert (over.status, "Rate limit" in over.html) == (429, True)
    assert int(over.answer.headers["retry-after"]) > 50


@pytest.mark.parametrize("path", ["/nothing", "/batches/batch-1", "/files/file-1/content", "/batches/x/y/z"])
def test_not_found_is_html_for_browsers_and_json_for_programs(path, web_client: WebClient):
    page = web_client.open(path)
    assert (page.status, "Not found" in page.html) == (404, True)
    assert page.answer.headers["content-type"].startswith("text/html")

    error = web_client.http.get(path, headers={"Accept": "*/*"})
    assert (error.status_code, {*json.loads(error.text)["error"]}) == (404, {"message", "type", "param", "code"})


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/v1/batches/batch-1", "/metrics/"])
def test_api_paths_return_json_errors_to_browsers(path, web_client: WebClient):
    answer = web_client.http.get(path, headers={"Accept": HTML if path != "/metrics/" else "*/*"})
    assert answer.status_code == 404
    assert "message" in answer.json()["error"]


def test_server_error_page_shows_request_id_without_details(web_client: WebClient, monkeypatch):
    monkeypatch.setattr(batch_list, "render_page", lambda *_, **__: 1 / 0)
    page = web_client.open("/")
    assert (page.status, "The server failed" in page.html) == (500, True)
    assert re.search("its log has the details of req_[0-9a-f]{32}", page.html)
    assert "division" not in page.html


def test_responses_have_security_headers(served: ApiServer, web_client: WebClient, tmp_path):
    ids = batch_of(served, "none", tmp_path)
    paths = ["/", "/new", "/files", "/nothing", *(path.format(**ids) for path in OF_A_BATCH)]
    for path in paths:
        headers = web_client.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert ("unsafe" in policy) is path.endswith("report.html")
        assert "script-src 'unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_static_files_need_no_key_and_are_cached(guest: WebClient):
    page = guest.open("/sign-in")
    found = {link for link in page.links() if link.startswith("/static/")}
    found |= {value or "" for name, value in page.attributes if name == "src"}
    assert len(found) == 4
    for link in found:
        answer = httpx.get(guest.root + link, trust_env=False)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert guest.open("/static/secrets.txt").status == 404

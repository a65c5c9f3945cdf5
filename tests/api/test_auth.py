"""Keys, members and managers: who comes in, what they see, and how much they may."""

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import openai
import pytest
from helpers.api_server import ENDPOINT, ApiServer, wait_for_end
from helpers.concurrency import in_threads
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.api import Server, auth, create_app
from batchline.client.api_keys import ApiKeys
from batchline.models.errors import InvalidInput
from batchline.models.settings import load_settings

OPEN = {"/healthz", "/readyz"}
FOR_ALL_WITH_A_KEY = {"/v1/models", "/v1/models/{model}"}
FOR_MANAGERS = {"/metrics"}
LISTS = {("GET", "/v1/files"), ("GET", "/v1/batches")}
NEW = {("POST", "/v1/files"), ("POST", "/v1/batches")}


class AliceObjects(NamedTuple):
    """Alice's objects on a server where Bob and a manager have keys as well."""

    served: ApiServer
    alice: str
    bob: str
    manager: str
    file: str
    batch: str
    output: str
    request: str

    def path(self, template: str) -> str:
        return template.format(file_id=self.file, batch_id=self.batch, model="m")

    def body(self, path: str) -> dict[str, object] | None:
        bodies = {
            "/v1/batches/{batch_id}/retry-requests": {"request_ids": [self.request]},
            "/v1/batches": {"input_file_id": self.file, "endpoint": ENDPOINT},
        }
        return bodies.get(path)


@pytest.fixture
def alices(served: ApiServer, tmp_path) -> AliceObjects:
    alice, bob = served.key("alice"), served.key("bob")
    manager = served.key("manager", "manager")
    client = served.openai(alice)
    prompt = lambda n: f"{n} simulate:status=400" if n == 1 else f"{n}?"  # noqa: E731
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3, prompt=prompt), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    over = wait_for_end(client, batch.id)
    assert over.output_file_id is not None
    request = f"req-{batch.id.removeprefix('batch-')}-2"
    return AliceObjects(served, alice, bob, manager, file.id, batch.id, over.output_file_id, request)


def operations() -> Iterator[tuple[str, str]]:
    """Every method and path that the document names."""
    for path, routes in create_app(Batchline()).openapi()["paths"].items():
        for method in routes:
            yield method.upper(), path


def test_auth_tests_cover_every_operation(tmp_path):
    found = {*operations()}
    about_one = {(method, path) for method, path in found if "{file_id}" in path or "{batch_id}" in path}
    others = {(method, path) for method, path in found if path in OPEN | FOR_ALL_WITH_A_KEY | FOR_MANAGERS}
    assert found == about_one | others | LISTS | NEW
    assert about_one == {*ABOUT_ONE}


ABOUT_ONE = [
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/files/{file_id}/cost-estimate"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/batches/{batch_id}"),
    ("GET", "/v1/batches/{batch_id}/analytics"),
    ("GET", "/v1/batches/{batch_id}/results"),
    ("POST", "/v1/batches/{batch_id}/pause"),
    ("POST", "/v1/batches/{batch_id}/resume"),
    ("POST", "/v1/batches/{batch_id}/cancel"),
    ("POST", "/v1/batches/{batch_id}/retry"),
    ("POST", "/v1/batches/{batch_id}/retry-requests"),
    ("DELETE", "/v1/batches/{batch_id}"),
]


def test_access_to_other_members_objects_returns_404_without_changes(alices: AliceObjects):
    bob, alice = alices.served.http(alices.bob), alices.served.http(alices.alice)
    before = alice.get(f"/v1/batches/{alices.batch}").json(), alice.get(f"/v1/files/{alices.file}").json()
    nobodys = alices._replace(file=f"file-{'0' * 32}", batch=f"batch-{'0' * 32}")

    for method, path in ABOUT_ONE:
        theirs = bob.request(method, alices.path(path), json=alices.body(path))
        none = bob.request(method, nobodys.path(path), json=alices.body(path))
        assert (theirs.status_code, none.status_code) == (404, 404), (method, path)
        assert re.sub("[0-9a-f]{32}", "", theirs.text) == re.sub("[0-9a-f]{32}", "", none.text)

    assert before == (
        alice.get(f"/v1/batches/{alices.batch}").json(),
        alice.get(f"/v1/files/{alices.file}").json(),
    )


def test_output_file_is_visible_only_to_batch_member(alices: AliceObjects):
    for path in (f"/v1/files/{alices.output}", f"/v1/files/{alices.output}/content"):
        assert alices.served.http(alices.alice).get(path).status_code == 200
        assert alices.served.http(alices.bob).get(path).status_code == 404


def test_other_members_file_as_batch_input_returns_404(alices: AliceObjects):
    answer = alices.served.http(alices.bob).post("/v1/batches", json=alices.body("/v1/batches"))

    assert (answer.status_code, answer.json()["error"]["message"]) == (404, f"there is no file {alices.file}")


def test_retry_of_other_members_requests_returns_404(alices: AliceObjects, tmp_path):
    bob = alices.served.openai(alices.bob)
    file = bob.files.create(file=write_requests(tmp_path / "b.jsonl", 1), purpose="batch")
    batch = bob.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    wait_for_end(bob, batch.id)
    body = {"request_ids": [f"req-{batch.id.removeprefix('batch-')}-1", alices.request]}

    answer = alices.served.http(alices.bob).post(f"/v1/batches/{batch.id}/retry-requests", json=body)

    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"there is no request {alices.request}"


def test_lists_are_limited_to_member_except_for_managers(alices: AliceObjects):
    served = alices.served
    served.client.files.create(file=b"{}\n")  # nobody's
    bobs = served.openai(alices.bob).files.create(file=b"{}\n", purpose="batch").id
    manager, bob, alice = (served.http(token) for token in (alices.manager, alices.bob, alices.alice))

    def ids(client: httpx.Client, path: str, **query: str) -> list[str]:
        return [each["id"] for each in client.get(path, params=query).json()["data"]]

    assert ids(bob, "/v1/files") == [bobs]
    assert ids(bob, "/v1/batches") == []
    assert len(ids(alice, "/v1/files")) == 3
    assert len(ids(manager, "/v1/files")) == 5
    assert ids(manager, "/v1/batches") == ids(alice, "/v1/batches") == [alices.batch]
    member = {key.member.name: key.member.id for key in ApiKeys(served.client).list()}
    assert ids(manager, "/v1/files", member_id=member["bob"]) == [bobs]
    assert ids(manager, "/v1/batches", member_id=member["bob"]) == []
    assert ids(manager, "/v1/batches", member_id=member["alice"]) == [alices.batch]
    assert ids(bob, "/v1/files", member_id=member["bob"]) == [bobs]
    assert ids(bob, "/v1/files", member_id=member["alice"]) == []
    assert ids(bob, "/v1/batches", member_id=member["alice"]) == []
    assert bob.get("/v1/files", params={"after": alices.file}).status_code == 404
    assert bob.get("/v1/batches", params={"after": alices.batch}).status_code == 404


def test_manager_can_use_objects_of_all_members(alices: AliceObjects):
    manager = alices.served.http(alices.manager)
    expected = {"cancel": 409, "pause": 409, "resume": 409}

    for method, path in sorted(ABOUT_ONE, key=lambda each: (each[0] == "DELETE", "retry" in each[1])):
        answer = manager.request(method, alices.path(path), json=alices.body(path))
        assert answer.status_code == expected.get(path.rpartition("/")[2], 200), answer.text
        if path.endswith(("/retry", "/retry-requests")):
            wait_for_end(alices.served.openai(alices.manager), alices.batch)


def test_concurrent_members_see_only_their_own_batches(alices: AliceObjects):
    def one(number: int) -> tuple[str, int, int]:
        token = (alices.alice, alices.bob, alices.manager)[number % 3]
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=alices.served.url, headers=headers, trust_env=False, timeout=60) as client:
            found = client.get(f"/batches/{alices.batch}").status_code
            return token, found, len(client.get("/batches").json()["data"])

    found = {*in_threads(30, one)}

    assert found == {(alices.alice, 200, 1), (alices.bob, 404, 0), (alices.manager, 200, 1)}


# Who comes in


def test_requests_without_valid_key_return_401_once_a_key_exists(served: ApiServer):
    served.key("anybody")
    closed = [(method, path) for method, path in operations() if path not in OPEN]

    for token in (None, "bl-wrong"):
        for method, path in closed:
            answer = served.http(token).request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        served.openai("bl-wrong").batches.list()


def test_health_is_open_and_metrics_require_manager_key(served: ApiServer):
    member, manager = served.key("alice"), served.key("boss", "manager")

    assert [served.http().get(path).status_code for path in sorted(OPEN)] == [200, 200]
    assert served.http().get("/openapi.json").status_code == 200
    statuses = [served.http(token).get("/metrics").status_code for token in (None, member, manager)]
    assert statuses == [401, 403, 200]


def test_revoked_key_is_rejected_after_cache_ttl(served: ApiServer):
    token = served.key("alice")
    client = served.http(token)
    assert client.get("/v1/batches").status_code == 200

    (key,) = ApiKeys(served.client).list()
    assert ApiKeys(served.client).revoke(key.id).revoked_at is not None

    time.sleep(auth.CACHE_TTL_S)
    assert client.get("/v1/batches").status_code == 401
    assert served.http().get("/v1/batches").status_code == 401  # nor is it open again


def test_first_key_closes_open_server_after_cache_ttl(served: ApiServer):
    client = served.http()
    assert client.get("/v1/batches").status_code == 200

    served.key("alice")

    time.sleep(auth.CACHE_TTL_S)
    assert client.get("/v1/batches").status_code == 401


def test_open_server_accepts_local_programs_but_not_foreign_origins(served: ApiServer):
    client = served.http()
    host = client.base_url.netloc.decode()

    assert client.get("/v1/batches").status_code == 200
    assert client.get("/v1/batches", headers={"Origin": f"http://{host}"}).status_code == 200
    for headers in ({"Host": "rebound.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = client.post("/v1/batches", headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "invalid_request_error")


def test_non_loopback_host_without_keys_is_rejected():
    client = Batchline(load_settings(base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(InvalidInput, match="keys create") as raised:
        Server(client, host="0.0.0.0", port=0)
    assert raised.value.param == "host"

    ApiKeys(client).create("alice")
    server = Server(client, host="0.0.0.0", port=0)
    assert not server.allows_anonymous
    server._listener.close()


def test_token_is_stored_only_as_hash(served: ApiServer, tmp_path):
    token = served.key("alice")
    served.http(token).get("/v1/batches")

    home = served.client.services.settings.home
    assert not [path for path in home.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


# How much they may


def test_requests_over_key_rate_limit_return_429_with_retry_after(served: ApiServer):
    token = served.key("alice", requests_per_minute=3)
    client = served.openai(token)
    for _ in range(3):
        client.batches.list()

    with pytest.raises(openai.RateLimitError) as raised:
        client.batches.list()

    assert 55 <= int(raised.value.response.headers["retry-after"]) <= 60
    assert (raised.value.type, raised.value.code) == ("requests", "rate_limit_exceeded")
    served.openai(served.key("bob")).batches.list()


def test_concurrent_creates_respect_open_batch_limit_of_key(start_api, database, tmp_path):
    served = start_api(simulator={"latency_s": 30}, grace_s=0, **database)
    token = served.key("alice", max_open_batches=3)
    client = served.openai(token)
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 1), purpose="batch")

    def create(_: int) -> int:
        body = {"input_file_id": file.id, "endpoint": ENDPOINT}
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {token}"}) as one:
            answer = one.post(f"{served.url}/batches", json=body, timeout=60)
        assert answer.status_code == 200 or answer.json()["error"]["code"] == "too_many_open_batches"
        return answer.status_code

    statuses = in_threads(10, create)

    assert sorted(statuses) == [200] * 3 + [429] * 7
    batch = client.batches.list().data[0]
    client.batches.cancel(batch.id)
    wait_for_end(client, batch.id)
    client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    with pytest.raises(openai.RateLimitError) as raised:
        client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    assert int(raised.value.response.headers["retry-after"]) > 0


def test_retried_batch_counts_toward_open_batch_limit(start_api, database, tmp_path):
    served = start_api(simulator={"latency_s": 30}, grace_s=0, **database)
    token = served.key("alice", max_open_batches=2)
    client, alice = served.openai(token), served.http(token)
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 1), purpose="batch")
    ids = [begun_and_cancelled(client, served, file.id) for _ in range(6)]

    def retry(number: int) -> int:
        path, body = f"/v1/batches/{ids[number]}", {"request_ids": [f"req-{ids[number].removeprefix('batch-')}-1"]}
        if number % 2:
            return alice.post(f"{path}/retry").status_code
        return alice.post(f"{path}/retry-requests", json=body).status_code

    statuses = in_threads(6, retry)

    assert sorted(statuses) == [200] * 2 + [429] * 4
    refused = ids[statuses.index(429)]
    answer = alice.post(f"/v1/batches/{refused}/retry")
    assert answer.json()["error"]["code"] == "too_many_open_batches"
    assert client.batches.retrieve(refused).status == "cancelled"
    manager = served.http(served.key("boss", "manager", max_open_batches=1))
    assert manager.post(f"/v1/batches/{refused}/retry").status_code == 200


def begun_and_cancelled(client: openai.OpenAI, served: ApiServer, file_id: str) -> str:
    sent = served.simulator.counters()["received"]
    batch = client.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h")
    until(lambda: served.simulator.counters()["received"] > sent)
    client.batches.cancel(batch.id)
    assert wait_for_end(client, batch.id).status == "cancelled"
    return batch.id


def test_upload_over_size_limit_of_key_is_rejected(served: ApiServer):
    client = served.openai(served.key("alice", max_upload_bytes=1_000))

    assert client.files.create(file=b"x" * 1_000, purpose="batch").bytes == 1_000
    with pytest.raises(openai.APIStatusError, match="1000 bytes") as raised:
        client.files.create(file=b"x" * 1_001, purpose="batch")
    assert (raised.value.status_code, raised.value.code) == (413, "file_too_large")
    assert len(client.files.list().data) == 1


def test_upload_over_member_storage_limit_is_rejected(start_api):
    served = start_api(max_member_bytes=1_000)
    alice, bob = served.openai(served.key("alice")), served.openai(served.key("bob"))
    kept = alice.files.create(file=b"x" * 600, purpose="batch")

    for size in (401, 10_000):
        with pytest.raises(openai.APIStatusError) as raised:
            alice.files.create(file=b"x" * size, purpose="batch")
        assert (raised.value.status_code, raised.value.code) == (413, "file_too_large")
    alice.files.create(file=b"x" * 400, purpose="batch")
    with pytest.raises(openai.APIStatusError, match="use all of your 1,000 bytes; delete some"):
        alice.files.create(file=b"x", purpose="batch")
    assert bob.files.create(file=b"x" * 1_000, purpose="batch").bytes == 1_000
    alice.files.delete(kept.id)
    assert alice.files.create(file=b"x" * 600, purpose="batch").bytes == 600

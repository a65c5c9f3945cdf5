"""Bounds of what one member, or anyone at all, can hold up."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from helpers.api_server import ENDPOINT, ApiServer, root_of
from helpers.polling import until
from helpers.request_files import write_requests

from batchline.api import concurrency, health, request_limits
from batchline.client.api_keys import ApiKeys

FORM = (
    b'--XY\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--XY\r\nContent-Disposition: form-data; name="file"; filename="r.jsonl"\r\n\r\n'
)
END = b"\r\n--XY--\r\n"
FILE = b'{"custom_id": "a"}\n' * 4_000
MOST_S = 20.0
"""A machine may be busy; what is held up here is held up until the test ends it."""


class HeldCalls:
    """Something slow that goes on until it is let go, and how often it was begun."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self.begun = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.begun += 1
        assert self._go.wait(60)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def held() -> Iterator[HeldCalls]:
    """Resources that are held until the test ends, at the latest."""
    slow = HeldCalls()
    yield slow
    slow.let_go()


@pytest.fixture
def many(held: HeldCalls) -> Iterator[Callable[[Callable[[], object], int], None]]:
    """Begin many calls at once, each on a thread of its own; they end with the test."""
    with ThreadPoolExecutor(300) as pool, ExitStack() as after:
        after.callback(held.let_go)
        yield lambda call, times: [pool.submit(call) for _ in range(times)] and None


def begun_upload(served: ApiServer, token: str) -> socket.socket:
    """A connection on which an upload has begun that goes on no further."""
    url = httpx.URL(root_of(served.url))
    connection = socket.create_connection((url.host, url.port or 80))
    head = f"POST /v1/files HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Length: 9999999\r\n"
    connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=XY\r\n\r\n".encode() + FORM + FILE)
    return connection


def test_slow_uploads_of_one_member_leave_slots_for_other_members(served: ApiServer):
    alice, bob = served.key("alice"), served.http(served.key("bob"))
    slow = [begun_upload(served, alice) for _ in range(64)]
    until(lambda: len([*served.client.services.store.incomplete_uploads(older_than_s=0)]) >= 8)

    answer = bob.post(
        "/v1/files",
        content=FORM + FILE + END,
        headers={"Content-Type": "multipart/form-data; boundary=XY"},
        timeout=MOST_S - 5,
    )

    assert answer.status_code == 200
    assert len([*served.client.services.store.incomplete_uploads(older_than_s=0)]) == 8
    for connection in slow:
        connection.close()


def test_slow_responses_to_one_member_leave_threads_for_other_members(
    served: ApiServer, held: HeldCalls, many, monkeypatch
):
    alice, bob = served.http(served.key("alice")), served.http(served.key("bob"))
    monkeypatch.setattr("batchline.api.files.estimate_file", held)
    many(lambda: alice.get("/v1/files/file-x/cost-estimate", timeout=60), 60)
    until(lambda: held.begun == concurrency.THREADS_PER_MEMBER)

    for path in ("/v1/files", "/v1/batches", "/v1/models", "/v1/batches?search=x"):
        assert bob.get(path, timeout=MOST_S).status_code == 200, path
    assert held.begun == concurrency.THREADS_PER_MEMBER


def test_deletions_of_running_batch_block_no_request_threads(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 30}, grace_s=5)
    alice, bob = served.key("alice"), served.http(served.key("bob"))
    client = served.openai(alice)
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    until(lambda: served.client.batches.record(batch.id).status == "in_progress")
    asker = served.http(alice)

    with ThreadPoolExecutor(45) as pool:
        answers = [pool.submit(asker.delete, f"/v1/batches/{batch.id}", timeout=90) for _ in range(45)]
        until(lambda: served.client.batches.record(batch.id).status == "cancelling")
        assert bob.get("/v1/files", timeout=MOST_S).status_code == 200
        assert asker.get(f"/v1/batches/{batch.id}", timeout=MOST_S).status_code == 200
        assert not any(answer.done() for answer in answers)
        statuses = sorted(answer.result().status_code for answer in answers)

    assert statuses == [200] + [404] * 44


def test_concurrent_requests_of_one_member_are_limited(served: ApiServer, held: HeldCalls, many, monkeypatch):
    monkeypatch.setattr(request_limits, "MAX_REQUESTS_PER_MEMBER", 10)
    monkeypatch.setattr("batchline.api.files.estimate_file", held)
    alice, bob = served.http(served.key("alice")), served.http(served.key("bob"))
    many(lambda: alice.get("/v1/files/file-x/cost-estimate", timeout=60), 15)  # one may meet the bound
    refused = lambda: alice.get("/v1/batches", timeout=MOST_S)  # noqa: E731
    until(lambda: refused().status_code == 429)

    assert refused().headers["retry-after"] == "1"
    assert bob.get("/v1/files", timeout=MOST_S).status_code == 200


def test_readiness_check_is_shared_and_fails_on_timeout(served: ApiServer, held: HeldCalls, many, monkeypatch):
    monkeypatch.setattr(served.client, "check_storage", held)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 2.0)
    anyone, statuses = served.http(), []
    many(lambda: statuses.append(anyone.get("/readyz", timeout=60).status_code), 100)
    until(lambda: held.begun == 1)

    assert served.http().get("/v1/files", timeout=MOST_S).status_code == 200
    until(lambda: len(statuses) == 100)
    assert (set(statuses), held.begun) == ({503}, 1)


def test_lookups_of_unknown_keys_do_not_block_known_keys(served: ApiServer, held: HeldCalls, many, monkeypatch):
    alice = served.http(served.key("alice"))
    assert alice.get("/v1/files").status_code == 200
    look_up = ApiKeys.find_by_token
    monkeypatch.setattr(
        ApiKeys, "find_by_token", lambda keys, token: held() if "stray" in token else look_up(keys, token)
    )
    stranger = served.http()
    ask = lambda number: stranger.get("/v1/files", headers={"Authorization": f"Bearer stray-{number}"}, timeout=60)  # noqa: E731
    numbers = iter(range(1_000))
    many(lambda: ask(next(numbers)), 100)
    until(lambda: held.begun == 2)
    time.sleep(1.1)  # a key is looked up again after a second

    assert alice.get("/v1/files", timeout=MOST_S).status_code == 200
    assert held.begun == 2


def test_json_body_with_millions_of_arrays_is_rejected_before_parsing(served: ApiServer):
    alice = served.http(served.key("alice"))
    body = b'{"request_ids":[' + b"[]," * 20_000_000 + b"1]}"

    answer = alice.post(
        "/v1/batches/batch-x/retry-requests", content=body, headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert "objects and arrays" in answer.json()["error"]["message"]


PROXIES = (
    {"X-Forwarded-For": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.9"},
    {"X-Real-IP": "203.0.113.9"},
    {"X-Forwarded-Host": "batchline.example"},
    {"Via": "1.1 cache"},
)


def test_proxied_request_without_keys_is_rejected(served: ApiServer):
    client = served.http()

    for headers in PROXIES:
        answer = client.get("/v1/files", headers=headers)
        assert (answer.status_code, "proxy" in answer.text) == (403, True), headers
        assert client.get("/healthz", headers=headers).status_code == 200


def test_http_1_0_request_without_keys_is_rejected_as_proxied(served: ApiServer):
    """A proxy that speaks HTTP/1.0 to its upstream and adds no header about itself."""
    url = httpx.URL(root_of(served.url))
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(f"GET /v1/files HTTP/1.0\r\nHost: {url.host}:{url.port}\r\n\r\n".encode())
        connection.settimeout(MOST_S)
        assert b" 403 " in connection.recv(100)


def test_proxied_request_with_key_is_accepted(served: ApiServer):
    alice = served.http(served.key("alice"))

    for headers in PROXIES:
        assert alice.get("/v1/files", headers=headers).status_code == 200

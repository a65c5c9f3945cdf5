"""A batch that is asked for again with the same Idempotency-Key."""

import httpx
import pytest
from helpers.api_server import ENDPOINT, ApiServer, root_of, serve_api, wait_for_end
from helpers.concurrency import in_threads
from helpers.request_files import write_requests

from batchline import Batchline


def body_of(file_id: str, **changes: object) -> dict[str, object]:
    return {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h", **changes}


def test_concurrent_creates_with_same_idempotency_key_make_one_batch(start_api, database, tmp_path):
    served = start_api(**database)
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))

    def create(_: int) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{served.url}/batches", json=body_of(file.id), headers={"Idempotency-Key": "once"})

    answers = in_threads(12, create)

    assert {answer.status_code for answer in answers} == {200}
    (batch_id,) = {answer.json()["id"] for answer in answers}
    assert [each.id for each in served.client.batches.list()] == [batch_id]


def test_idempotency_key_survives_restart_until_batch_is_deleted(served: ApiServer, tmp_path):
    headers = {"Idempotency-Key": "once"}
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))
    first = served.http().post("/v1/batches", json=body_of(file.id), headers=headers).json()
    wait_for_end(served.openai(), first["id"])
    served.client.files.delete(file.id)
    served.close()

    other = Batchline(services=served.client.services)
    with serve_api(other) as url, httpx.Client(base_url=root_of(url), trust_env=False) as client:
        again = client.post("/v1/batches", json=body_of(file.id), headers=headers)
        assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first["id"], "completed")
        client.delete(f"/v1/batches/{first['id']}")
        assert client.post("/v1/batches", json=body_of(file.id), headers=headers).status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"completion_window": "23h"},
        {"metadata": {"a": "b"}},
        {"output_expires_after": {"seconds": 9}},
        {"options": {"on_limit": "stop"}},
    ],
    ids=["window", "metadata", "expiry", "options"],
)
def test_idempotency_key_with_different_body_is_rejected(changes, served: ApiServer, tmp_path):
    headers = {"Idempotency-Key": "once"}
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))
    client = served.http()
    client.post("/v1/batches", json=body_of(file.id, metadata=None), headers=headers)

    answer = client.post("/v1/batches", json=body_of(file.id, **changes), headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert len(served.client.batches.list().data) == 1


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_idempotency_key_of_invalid_length_is_rejected(key, served: ApiServer):
    answer = served.http().post("/v1/batches", json=body_of("file-x"), headers={"Idempotency-Key": key})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_idempotency_key_is_scoped_to_member(served: ApiServer, tmp_path):
    ids = set()
    for name in ("alice", "bob"):
        client = served.openai(served.key(name))
        file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 1), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            extra_headers={"Idempotency-Key": "once"},
        )
        ids.add(batch.id)

    assert len(ids) == 2

"""Concurrent clients, servers that stop and start, and metrics of both."""

import asyncio
import signal
import time
from collections import Counter
from typing import Any

import httpx
import openai
import pytest
from helpers.api_server import ENDPOINT, FINAL_STATUSES, ApiServer, root_of, serve_api, wait_for_end
from helpers.command_line import running_command
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.client.maintenance import resume_orphaned_batches
from batchline.models.errors import StorageFault

CLIENTS = 200
POLL_S = 3.0


@pytest.mark.system
def test_concurrent_clients_create_poll_and_cancel_without_lost_batches(database, start_simulator, tmp_path):
    """In a process of their own, as they are in life; no client is refused anything but a cancel that is late."""
    settings = {f"BATCHLINE_{name.upper()}": str(value) for name, value in database.items()}
    upstream = start_simulator(latency_s=0.01).base_url
    content = write_requests(tmp_path / "r.jsonl", 3).read_bytes()
    with running_command("serve", "--port", "0", OPENAI_BASE_URL=upstream, **settings) as server:
        server.wait_for("serving at ")
        url = root_of(server.err.partition("serving at ")[2].split()[0])

        ended, listed = asyncio.run(all_clients(url, content))

        server.kill(signal.SIGTERM)
        assert server.wait().status == 0
    assert len(ended) == CLIENTS
    assert set(ended.values()) <= {"completed", "cancelled"}
    assert Counter(ended.values())["completed"] >= CLIENTS * 2 // 3
    assert listed == ended


async def all_clients(url: str, content: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the final state of each client's batch, and a list of all batches."""
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as http:
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(one_client(http, content, number)) for number in range(CLIENTS)]
        ended = dict(client.result() for client in clients)
        listed: dict[str, str] = {}
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            after = {"after": page["last_id"]} if listed else {}
            page = told(await http.get("/v1/batches", params={"limit": 100, **after}))
            listed |= {batch["id"]: batch["status"] for batch in page["data"]}
    return ended, listed


async def one_client(http: httpx.AsyncClient, content: bytes, number: int) -> tuple[str, str]:
    """The client's batch and how it ended; each third client cancels its own."""
    form = {"files": {"file": ("r.jsonl", content)}, "data": {"purpose": "batch"}}
    file = told(await http.post("/v1/files", **form))
    asked = {"input_file_id": file["id"], "endpoint": ENDPOINT, "metadata": {"n": str(number)}}
    batch = told(await http.post("/v1/batches", json=asked))
    told(await http.get("/v1/batches", params={"limit": 5}))
    if number % 3 == 0:
        answer = await http.post(f"/v1/batches/{batch['id']}/cancel")
        assert answer.status_code == 200 or "is completed" in answer.text or "is finalizing" in answer.text
    async with asyncio.timeout(180):
        while batch["status"] not in FINAL_STATUSES:
            await asyncio.sleep(POLL_S)
            batch = told(await http.get(f"/v1/batches/{batch['id']}"))
    assert batch["metadata"] == {"n": str(number)}
    return batch["id"], batch["status"]


def told(answer: httpx.Response) -> dict[str, Any]:
    """Return the response's JSON; fail if the request did not succeed."""
    assert answer.status_code == 200, answer.text
    return answer.json()


# Servers that stop and start


def test_batches_of_stopped_server_resume_on_next_start(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 4}, grace_s=0.1)
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 60))
    ids = [served.client.batches.create(input_file_id=file.id).id for _ in range(3)]
    until(lambda: served.client.batches.record(ids[0]).completed > 3)
    served.close()
    assert {served.client.batches.record(each).status for each in ids}.isdisjoint({"completed", "failed"})

    other = Batchline(services=served.client.services)
    with serve_api(other) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        assert {wait_for_end(client, each).status for each in ids} == {"completed"}


def test_server_start_resumes_only_its_own_batches(served: ApiServer, tmp_path):
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))
    cli = Batchline(services=served.client.services, origin="cli")
    theirs = cli.batches.create(input_file_id=file.id, via=None)
    ours = served.client.batches.create(input_file_id=file.id, via=None)

    assert resume_orphaned_batches(served.client) == [ours.id]
    assert served.client.batches.wait(ours.id).status == "completed"
    assert resume_orphaned_batches(served.client) == []
    assert served.client.batches.retrieve(theirs.id).status == "validating"


def test_metrics_report_batches_and_requests(start_api, tmp_path):
    served = start_api(upstream={"max_attempts": 1})
    prompt = lambda n: f"{n} simulate:status=400" if n == 0 else f"{n}?"  # noqa: E731
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 5, prompt=prompt))
    ran = served.client.batches.create(input_file_id=file.id)
    served.client.batches.wait(ran.id)
    Batchline(services=served.client.services, origin="cli").batches.create(input_file_id=file.id, via=None)
    time.sleep(1.1)

    text = served.http().get("/metrics").text
    figures = {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines())
        if not name.startswith("#")
    }

    assert figures['batchline_batches{status="completed"}'] == 1
    assert figures['batchline_batches{status="validating"}'] == 1
    assert figures['batchline_batches{status="cancelling"}'] == 0
    assert figures['batchline_requests_total{outcome="completed"}'] == 4
    assert figures['batchline_requests_total{outcome="invalid_request"}'] == 1
    assert figures["batchline_requests_in_flight"] == 0
    assert figures['batchline_tokens_total{kind="completion"}'] > 0
    assert figures["batchline_request_duration_seconds_count"] == 5
    assert figures['batchline_request_duration_seconds_bucket{le="+Inf"}'] == 5
    assert 1 <= figures["batchline_queue_age_seconds"] < 60


def test_readiness_fails_when_storage_fails(served: ApiServer, monkeypatch):
    assert served.http().get("/readyz").json() == {"status": "ok"}

    def fail(*_: object) -> None:
        raise StorageFault("/secret/place: gone")

    monkeypatch.setattr(served.client.services.store, "info", fail)
    http = served.http()
    until(lambda: http.get("/readyz").status_code == 503)  # once the answer of a moment ago is forgotten
    assert http.get("/readyz").json()["error"]["type"] == "server_error"
    assert http.get("/healthz").status_code == 200

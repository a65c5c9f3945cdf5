"""Many clients at once, servers that stop and start, and figures of both."""

import time
from collections import Counter

import openai
from serving import ENDPOINT, Served, at_once, running, until_over
from some_requests import requests_file
from typed import until

from batchline import Batchline
from batchline.models.errors import StorageFault
from batchline.operations.keeper import go_on

CLIENTS = 30


def test_clients_create_poll_and_cancel_at_once_and_no_batch_is_lost(serve, database, tmp_path):
    served = serve(stand_in={"latency_s": 0.01}, **database)
    path = requests_file(tmp_path / "r.jsonl", 3)

    def one(number: int) -> tuple[str, str]:
        with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client:
            file = client.files.create(file=path, purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"n": str(number)}
            )
            client.batches.list(limit=5)
            if number % 3 == 0:
                cancelled_or_over(client, batch.id)
            return batch.id, until_over(client, batch.id, timeout_s=180).status

    ended = dict(at_once(one, CLIENTS))

    assert len(ended) == CLIENTS
    assert set(ended.values()) <= {"completed", "cancelled"}
    assert Counter(ended.values())["completed"] >= CLIENTS * 2 // 3
    listed = {batch.id: batch.status for batch in served.openai().batches.list(limit=100)}
    assert listed == ended


def cancelled_or_over(client: openai.OpenAI, batch_id: str) -> None:
    try:
        client.batches.cancel(batch_id)
    except openai.ConflictError as error:
        assert "is completed" in str(error) or "is finalizing" in str(error)  # noqa: PT017 - either may be


# Servers that stop and start


def test_what_a_stopped_server_had_begun_goes_on_in_the_next(serve, tmp_path):
    served = serve(stand_in={"latency_s": 0.1}, upstream={"max_in_flight": 4}, grace_s=0.1)
    file = served.client.files.create(file=requests_file(tmp_path / "r.jsonl", 60))
    ids = [served.client.batches.create(input_file_id=file.id).id for _ in range(3)]
    until(lambda: served.client.batches.record(ids[0]).completed > 3)
    served.close()
    assert {served.client.batches.record(each).status for each in ids}.isdisjoint({"completed", "failed"})

    other = Batchline(engine=served.client.engine)
    with running(other) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        assert {until_over(client, each).status for each in ids} == {"completed"}


def test_batches_that_others_run_are_left_to_them(served: Served, tmp_path):
    file = served.client.files.create(file=requests_file(tmp_path / "r.jsonl", 1))
    cli = Batchline(engine=served.client.engine, source="cli")
    theirs = cli.batches.create(input_file_id=file.id, via=None)
    ours = served.client.batches.create(input_file_id=file.id, via=None)

    assert go_on(served.client) == [ours.id]
    assert served.client.batches.wait(ours.id).status == "completed"
    assert go_on(served.client) == []
    assert served.client.batches.retrieve(theirs.id).status == "validating"


def test_figures_tell_of_batches_and_requests(serve, tmp_path):
    served = serve(upstream={"max_attempts": 1})
    prompt = lambda n: f"{n} simulate:status=400" if n == 0 else f"{n}?"  # noqa: E731
    file = served.client.files.create(file=requests_file(tmp_path / "r.jsonl", 5, prompt=prompt))
    ran = served.client.batches.create(input_file_id=file.id)
    served.client.batches.wait(ran.id)
    Batchline(engine=served.client.engine, source="cli").batches.create(input_file_id=file.id, via=None)
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


def test_readiness_tells_of_storage_and_database(served: Served, monkeypatch):
    assert served.http().get("/readyz").json() == {"status": "ok"}

    def fail(*_: object) -> None:
        raise StorageFault("/secret/place: gone")

    monkeypatch.setattr(served.client.engine.store, "info", fail)
    answer = served.http().get("/readyz")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert served.http().get("/healthz").status_code == 200

"""Cancelling in every state, also from another process, and what becomes of what was under way."""

import json
import subprocess
import sys
import time

import pytest
from helpers.polling import until
from helpers.record_edits import change_batch
from helpers.request_files import read_lines, request_numbers, write_requests

from batchline.engine.lease import active_lease
from batchline.models.errors import Conflict, NotFound, StorageFault
from batchline.models.status import BatchStatus
from batchline.storage.objects import layout

TOTAL = 300
SLOW = {"latency_s": 0.1}
FEW = {"max_in_flight": 8}


def received(here) -> int:
    return here.simulator.counters()["received"]


def made(here, tmp_path, count=TOTAL, **create):
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count))
    return here.client.batches.create(input_file_id=file.id, **create)


def assert_unsent_is_cancelled(client, batch, sent, total=TOTAL):
    output, errors = read_lines(client, batch.output_file_id), read_lines(client, batch.error_file_id)
    assert batch.status == "cancelled"
    assert sorted(request_numbers(output) + request_numbers(errors)) == list(range(total))
    assert len(output) == batch.request_counts.completed == sent
    assert (len(errors), batch.request_counts.failed) == (total - sent, 0)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert batch.cancelling_at <= batch.cancelled_at


def test_cancel_before_run_ends_batch_without_files(make_client, tmp_path):
    here = make_client()
    batch = made(here, tmp_path, via=None)

    cancelled = here.client.batches.cancel(batch.id)

    assert (cancelled.status, cancelled.output_file_id, cancelled.error_file_id) == ("cancelled", None, None)
    assert cancelled.request_counts.total == 0
    assert here.client.batches.run(batch.id).status == "cancelled"
    assert list(here.client.batches.results(batch.id)) == []
    assert received(here) == 0


def test_cancel_of_running_batch_keeps_sent_requests_and_cancels_rest(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = made(here, tmp_path)
    until(lambda: received(here) > 20)

    first = here.client.batches.cancel(batch.id)
    again = here.client.batches.cancel(batch.id)

    assert (first.status, again.cancelling_at) == ("cancelling", first.cancelling_at)
    ended = here.client.batches.wait(batch.id, timeout_s=30)
    assert 20 < received(here) < TOTAL
    assert_unsent_is_cancelled(here.client, ended, received(here))
    assert here.client.batches.cancel(batch.id) == ended.model_copy(update={"analytics": None})
    assert here.client.batches.retrieve(batch.id) == ended


CANCEL = """
import sys
from batchline import Batchline
from batchline.models.settings import Settings
with Batchline(Settings.model_validate_json(sys.stdin.read())) as client:
    print(client.batches.cancel(sys.argv[1]).status)
"""


@pytest.mark.system
def test_cancel_from_another_process_stops_sending(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.02}, upstream={"max_in_flight": 2}, lease_s=4.0)
    batch = made(here, tmp_path, 3_000)
    until(lambda: received(here) > 5)

    told = cancelled_elsewhere(here.client.services.settings, batch.id)

    assert told == "cancelling"
    until(lambda: (hold := active_lease(batch.id)) is None or hold.session.stop_reason is not None, timeout_s=10)
    sent = received(here)
    ended = here.client.batches.wait(batch.id, timeout_s=30)
    assert received(here) - sent <= 2  # what was on its way when the run was stopped
    assert_unsent_is_cancelled(here.client, ended, received(here), 3_000)


def cancelled_elsewhere(settings, batch_id: str) -> str:
    """The batch's status as a process of its own was told that has cancelled it."""
    chosen = settings.model_dump(mode="json", include=settings.model_fields_set, exclude={"openai_base_url"})
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if hasattr(value, "get_secret_value"):
            chosen[name] = value.get_secret_value()
    done = subprocess.run(
        [sys.executable, "-c", CANCEL, batch_id], input=json.dumps(chosen), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_run_of_cancelling_batch_writes_files_and_sends_nothing(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = made(here, tmp_path)
    until(lambda: received(here) > 20)
    active_lease(batch.id).interrupt("enough for today")
    until(lambda: not here.client.runner.is_running(batch.id))
    sent = received(here)

    assert here.client.batches.cancel(batch.id).status == "cancelling"
    ended = here.client.batches.run(batch.id)

    assert received(here) == sent
    assert_unsent_is_cancelled(here.client, ended, sent)


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
def test_cancel_of_finished_batch_is_rejected(status, make_client, tmp_path):
    here = make_client()
    prompt = "simulate:status=400" if status == "failed" else "Well?"
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", 3, prompt=lambda _: prompt))
    batch = here.client.batches.create(input_file_id=file.id, via=None)
    if status == "expired":
        change_batch(here.client.services.records, batch.id, expires_at=int(time.time()) - 1)
    ended = here.client.batches.run(batch.id)

    with pytest.raises(Conflict, match=f"is {status}"):
        here.client.batches.cancel(batch.id)

    assert here.client.batches.retrieve(batch.id) == ended


def test_cancel_of_finalizing_batch_is_rejected(make_client, tmp_path, monkeypatch):
    here = make_client()
    batch = made(here, tmp_path, 3, via=None)
    store = here.client.services.store
    put = store.put

    def full(key: str, data: bytes) -> None:
        if key == layout.report_data_key(batch.id):
            raise StorageFault("the disk is full")
        put(key, data)

    with monkeypatch.context() as here_only:
        here_only.setattr(store, "put", full)
        with pytest.raises(StorageFault):
            here.client.batches.run(batch.id)

    with pytest.raises(Conflict, match="is finalizing"):
        here.client.batches.cancel(batch.id)
    assert here.client.batches.run(batch.id).status == BatchStatus.COMPLETED


def test_cancel_at_end_of_validation_leaves_no_results(make_client, tmp_path, monkeypatch):
    here = make_client()
    batch = made(here, tmp_path, 3, via=None)
    store = here.client.services.store
    put = store.put

    def put_and_cancel(key: str, data: bytes) -> None:
        put(key, data)
        if key == layout.plan_key(batch.id):
            here.client.batches.cancel(batch.id)

    monkeypatch.setattr(store, "put", put_and_cancel)
    ended = here.client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.total) == ("cancelled", 0)
    assert list(here.client.batches.results(batch.id)) == []
    assert received(here) == 0


def test_cancel_of_unknown_batch_raises_not_found(make_client):
    with pytest.raises(NotFound, match="batch-of-nobody"):
        make_client().client.batches.cancel("batch-of-nobody")


def test_retry_of_cancelled_batch_sends_only_unanswered_requests(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW, lease_s=2.0)
    batch = made(here, tmp_path)
    until(lambda: received(here) > 10)
    here.client.batches.cancel(batch.id)
    cancelled = here.client.batches.wait(batch.id, timeout_s=30)
    until(lambda: not here.client.runner.is_running(batch.id))

    here.client.batches.retry(batch.id)
    ended = here.client.batches.wait(batch.id, timeout_s=30)

    assert (ended.status, ended.request_counts.completed, ended.cancelled_at) == ("completed", TOTAL, None)
    assert ended.output_file_id == cancelled.output_file_id
    assert received(here) == TOTAL

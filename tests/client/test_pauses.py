"""Pausing and resuming: what is sent, what is saved, and which other operations are possible meanwhile."""

import time

import pytest
from helpers.polling import until
from helpers.record_edits import change_batch
from helpers.request_files import read_lines, request_numbers, write_requests

from batchline.client.housekeeping import run_housekeeping
from batchline.client.maintenance import resume_orphaned_batches
from batchline.engine.lease import active_lease
from batchline.models.errors import BatchPaused, Conflict, NotFound
from batchline.models.status import BatchStatus

TOTAL = 300
SLOW = {"latency_s": 0.1}
FEW = {"max_in_flight": 8}


def received(here) -> int:
    return here.simulator.counters()["received"]


def create_batch(here, tmp_path, count=TOTAL, **create):
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count))
    return here.client.batches.create(input_file_id=file.id, **create)


def wait_until_idle(client, batch_id) -> None:
    until(lambda: not client.runner.is_running(batch_id) and active_lease(batch_id) is None)


def paused_batch(here, tmp_path):
    """Return a batch that was paused after some of its requests were sent, and that no process runs."""
    batch = create_batch(here, tmp_path)
    until(lambda: received(here) > 20)
    paused = here.client.batches.pause(batch.id, message="the price went up")
    wait_until_idle(here.client, batch.id)
    return paused


def assert_each_is_answered_once(here, batch, count=TOTAL) -> None:
    assert batch.status == "completed"
    assert request_numbers(read_lines(here.client, batch.output_file_id)) == list(range(count))
    assert received(here) == count


def test_paused_batch_sends_nothing_and_keeps_every_answer(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW, grace_s=0.0)
    batch = create_batch(here, tmp_path)
    until(lambda: received(here) > 20)

    paused = here.client.batches.pause(batch.id, message="the price went up")

    assert (paused.status, paused.paused.code, paused.paused.message) == (
        "in_progress",
        "by_user",
        "the price went up",
    )
    wait_until_idle(here.client, batch.id)
    sent = received(here)
    stopped = here.client.batches.retrieve(batch.id)
    assert stopped.request_counts.completed == sent, "requests in flight are finished, without a grace period"
    with pytest.raises(BatchPaused, match=f"{batch.id} is paused: the price went up"):
        here.client.batches.wait(batch.id, timeout_s=10)
    with pytest.raises(BatchPaused):
        here.client.batches.run(batch.id)
    assert received(here) == sent < TOTAL


def test_resumed_batch_sends_only_the_rest(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = paused_batch(here, tmp_path)
    time.sleep(1.2)

    resumed = here.client.batches.resume(batch.id)

    assert resumed.paused is None
    assert resumed.expires_at > batch.expires_at
    assert_each_is_answered_once(here, here.client.batches.wait(batch.id, timeout_s=60))


def test_batch_resumed_while_its_requests_finish_goes_on_by_itself(start_held_batch, controlled):
    client, batch_id = start_held_batch(20)
    until(lambda: len(controlled.prompts) == 4)
    client.batches.pause(batch_id)
    until(lambda: active_lease(batch_id).session.stop_reason is not None)

    assert client.batches.resume_where_it_ran(batch_id) == "same process"

    controlled.answer_all()
    assert client.batches.wait(batch_id, timeout_s=30).request_counts.completed == 20
    assert len(controlled.prompts) == 20


def test_batch_paused_before_validation_is_validated_and_sends_nothing(make_client, tmp_path):
    here = make_client()
    batch = create_batch(here, tmp_path, via=None)
    here.client.batches.pause(batch.id)

    with pytest.raises(BatchPaused):
        here.client.batches.run(batch.id)

    paused = here.client.batches.retrieve(batch.id)
    assert (paused.status, paused.request_counts.total, received(here)) == ("in_progress", TOTAL, 0)


def test_paused_batch_is_cancelled_with_its_answers_at_once(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = paused_batch(here, tmp_path)
    sent = received(here)

    here.client.batches.cancel(batch.id)

    ended = here.client.batches.wait(batch.id, timeout_s=30)
    assert (ended.status, ended.paused, ended.request_counts.completed) == ("cancelled", None, sent)
    errors = read_lines(here.client, ended.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert (len(errors), received(here)) == (TOTAL - sent, sent)


def test_batch_cancelled_while_its_requests_finish_ends_cancelled(start_held_batch, controlled):
    client, batch_id = start_held_batch(20, grace_s=0.1)
    until(lambda: len(controlled.prompts) == 4)
    client.batches.pause(batch_id)
    client.batches.cancel(batch_id)

    ended = client.batches.wait(batch_id, timeout_s=30)

    assert (ended.status, ended.request_counts.completed) == ("cancelled", 0)


def test_paused_batch_is_deleted_at_once(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = paused_batch(here, tmp_path)

    here.client.batches.delete(batch.id)

    with pytest.raises(NotFound):
        here.client.batches.retrieve(batch.id)


def test_paused_batch_cannot_be_retried(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = paused_batch(here, tmp_path)

    with pytest.raises(Conflict, match="only a batch that is over can be retried"):
        here.client.batches.retry(batch.id)


def test_batch_paused_past_its_window_goes_on_after_it_is_resumed(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW)
    batch = paused_batch(here, tmp_path)
    record = here.client.batches.record(batch.id)
    # As if two days had gone by, of a window of one.
    change_batch(
        here.client.services.records,
        batch.id,
        paused_at=record.paused_at - 172_800,
        expires_at=record.expires_at - 172_800,
    )

    here.client.batches.resume(batch.id)

    assert_each_is_answered_once(here, here.client.batches.wait(batch.id, timeout_s=60))


@pytest.mark.parametrize("run_past_window", [False, True])
def test_batch_paused_for_too_long_expires_with_its_answers(run_past_window, make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW, max_paused="1h", run_past_window=run_past_window)
    batch = paused_batch(here, tmp_path)
    sent = received(here)
    change_batch(here.client.services.records, batch.id, paused_at=batch.paused.at - 3_601)

    ended = here.client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.completed, received(here)) == ("expired", sent, sent)
    messages = {line["error"]["message"] for line in read_lines(here.client, ended.error_file_id)}
    assert messages == {"the batch was paused for too long before this request was settled"}


def test_batch_never_validated_and_paused_for_too_long_expires_without_files(make_client, tmp_path):
    here = make_client(max_paused="1h")
    batch = create_batch(here, tmp_path, via=None)
    paused = here.client.batches.pause(batch.id)
    change_batch(here.client.services.records, batch.id, paused_at=paused.paused.at - 3_601)

    ended = here.client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.total, ended.error_file_id) == ("expired", 0, None)


@pytest.mark.parametrize("status", [BatchStatus.FINALIZING, BatchStatus.COMPLETED])
def test_settled_batch_cannot_be_paused(status, make_client, tmp_path):
    here = make_client()
    batch = create_batch(here, tmp_path, via=None)
    change_batch(here.client.services.records, batch.id, status=status)

    with pytest.raises(Conflict, match=f"{batch.id} is {status} and cannot be paused"):
        here.client.batches.pause(batch.id)
    with pytest.raises(Conflict):
        here.client.batches.resume_where_it_ran(batch.id)


def test_server_leaves_a_paused_batch_alone_and_ends_it_in_time(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW, max_paused="1h")
    batch = paused_batch(here, tmp_path)

    assert here.client.batches.list(paused=True).data[0].id == batch.id
    assert resume_orphaned_batches(here.client) == []
    change_batch(here.client.services.records, batch.id, paused_at=batch.paused.at - 3_601)
    assert resume_orphaned_batches(here.client) == [batch.id]
    assert here.client.batches.wait(batch.id, timeout_s=30).status == "expired"


def test_housekeeping_leaves_a_paused_batch_alone_and_ends_it_in_time(make_client, tmp_path):
    here = make_client(simulator=SLOW, upstream=FEW, max_paused="1h")
    batch = paused_batch(here, tmp_path)
    change_batch(here.client.services.records, batch.id, expires_at=batch.created_at)

    assert [item for item in run_housekeeping(here.client) if item.subject == batch.id] == []
    change_batch(here.client.services.records, batch.id, paused_at=batch.paused.at - 3_601)
    items = [item for item in run_housekeeping(here.client, apply=True) if item.subject == batch.id]

    assert [(item.kind, item.reason, item.done) for item in items] == [
        ("resume", "it was paused for too long", True)
    ]
    assert here.client.batches.retrieve(batch.id).status == "expired"

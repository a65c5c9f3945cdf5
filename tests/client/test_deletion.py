"""Deletions leave neither records nor objects, whatever state they meet."""

import pytest
from helpers.polling import until
from helpers.request_files import write_requests

from batchline.engine.lease import active_lease
from batchline.models.errors import Conflict, NotFound
from batchline.storage.objects import layout

STATES = ["validating", "running", "left lying", "completed", "failed", "being retried", "cancelled"]


def batch_in(state, here, tmp_path):
    """A batch of twenty requests in that state."""
    order = "simulate:status=400" if state in {"failed", "being retried"} else "Well?"
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", 20, prompt=f"{order} {{}}".format))
    batches = here.client.batches
    batch = batches.create(input_file_id=file.id, via=None)
    if state == "cancelled":
        batches.cancel(batch.id)
    elif state in {"running", "left lying"}:
        batches.resume(batch.id)
        sent = here.simulator.counters()["received"]
        until(lambda: here.simulator.counters()["received"] > sent + 4)
    elif state != "validating":
        batches.run(batch.id)
    if state == "left lying":
        active_lease(batch.id).interrupt("enough for today")
        until(lambda: not here.client.runner.is_running(batch.id))
    if state == "being retried":
        batches.retry(batch.id, via=None)
    return batches.record(batch.id)


def test_deleted_batch_leaves_only_its_input(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 4})
    for state in STATES:
        batch = batch_in(state, here, tmp_path)

        here.client.batches.delete(batch.id)

        for ask in (here.client.batches.retrieve, here.client.batches.results):
            with pytest.raises(NotFound):
                ask(batch.id)
        keys = [info.key for info in here.client.services.store.list_objects("")]
        assert [file.id for file in here.client.files.list()] == [batch.input_file_id], state
        assert keys == [layout.input_key(batch.input_file_id)], state
        assert list(here.client.batches.list()) == [], state
        until(lambda batch_id=batch.id: not here.client.runner.is_running(batch_id))
        here.client.files.delete(batch.input_file_id)


@pytest.mark.parametrize("state", ["validating", "running", "being retried"])
def test_file_of_unfinished_batch_cannot_be_deleted(state, make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 4})
    batch = batch_in(state, here, tmp_path)

    for file_id in filter(None, (batch.input_file_id, batch.output_file_id, batch.error_file_id)):
        with pytest.raises(Conflict, match=batch.id):
            here.client.files.delete(file_id)
        assert here.client.files.retrieve(file_id).id == file_id
    here.client.batches.delete(batch.id)


def test_input_is_deletable_once_no_other_batch_needs_it(make_client, tmp_path):
    here = make_client()
    first = batch_in("completed", here, tmp_path)
    second = here.client.batches.create(input_file_id=first.input_file_id, via=None)

    with pytest.raises(Conflict, match=second.id):
        here.client.files.delete(first.input_file_id)
    here.client.batches.cancel(second.id)
    here.client.files.delete(first.input_file_id)

    with pytest.raises(NotFound):
        here.client.files.content(first.input_file_id)
    assert {item.input_body for item in here.client.batches.results(first.id)} == {None}


@pytest.mark.parametrize("times", [0, 1], ids=["first results", "a retry's"])
def test_deleted_result_file_is_removed_with_published_copy(times, make_client, tmp_path):
    here = make_client()
    batch = batch_in("failed", here, tmp_path)
    for _ in range(times):
        here.client.batches.retry(batch.id, via=None)
        here.client.batches.run(batch.id)

    store, key = here.client.services.store, here.client.services.records.get_file(batch.error_file_id).key

    here.client.files.delete(batch.error_file_id)

    with pytest.raises(NotFound):
        here.client.files.retrieve(batch.error_file_id)
    assert not store.exists(key)
    assert not store.exists(layout.errors_key(batch.id))
    with pytest.raises(Conflict, match="a file of its results was deleted"):
        here.client.batches.retry(batch.id)

"""Batches: made, run, waited for, looked at and listed."""

import threading

import pytest
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.client.runner import MAX_CONCURRENT_BATCHES
from batchline.engine.lease import active_lease
from batchline.models.errors import Conflict, InvalidInput, NotFound


def stored(here, tmp_path, count=20, **options):
    return here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count, **options))


def test_batch_is_created_run_and_completed(make_client, tmp_path):
    here = make_client()
    file = stored(here, tmp_path, blank_every=4)
    batch = here.client.batches.create(input_file_id=file.id, completion_window="2h", metadata={"team": "search"})
    assert (batch.status, batch.input_file_id, batch.metadata) == ("validating", file.id, {"team": "search"})
    assert batch.expires_at == batch.created_at + 7_200
    assert batch.dwext.source == "api"

    ended = here.client.batches.wait(batch.id, timeout_s=60)

    assert (ended.status, ended.request_counts.total, ended.request_counts.completed) == ("completed", 20, 20)
    assert ended.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.completed_at
    assert ended.analytics.total_requests == 20
    assert here.client.batches.retrieve(batch.id) == ended
    assert here.client.batches.retrieve(batch.id, include=()).analytics is None
    assert here.client.batches.report(batch.id).attempts == 20


def test_unstarted_batch_waits_until_resumed(make_client, tmp_path):
    here = make_client()
    batch = here.client.batches.create(input_file_id=stored(here, tmp_path).id, via=None)

    with pytest.raises(TimeoutError, match=batch.id):
        here.client.batches.wait(batch.id, timeout_s=0.1, poll_interval_s=0.05)
    assert here.simulator.counters()["received"] == 0

    here.client.batches.resume(batch.id)
    assert here.client.batches.wait(batch.id, timeout_s=60).status == "completed"


def test_batch_with_invalid_lines_fails_and_reports_each_line(make_client, tmp_path):
    here = make_client()
    path = write_requests(tmp_path / "r.jsonl", 4)
    path.write_text(path.read_text() + "\nnot json\n{}\n")
    batch = here.client.batches.create(input_file_id=here.client.files.create(file=path).id)

    ended = here.client.batches.wait(batch.id, timeout_s=60)

    assert (ended.status, ended.request_counts.total) == ("failed", 0)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    lines = [(error.code, error.line) for error in ended.errors.data if error.code == "invalid_json_line"]
    assert lines == [("invalid_json_line", 6)]
    assert {error.line for error in ended.errors.data} == {6, 7}
    assert list(here.client.batches.results(batch.id)) == []
    assert here.simulator.counters()["received"] == 0


REFUSED = {
    "window": ({"completion_window": "soon"}, InvalidInput, "completion_window"),
    "too long a window": ({"completion_window": "30d"}, InvalidInput, "completion_window"),
    "endpoint": ({"endpoint": "/v1/images"}, InvalidInput, "endpoint"),
    "metadata": ({"metadata": {"x": "y" * 513}}, InvalidInput, "metadata"),
    "too much metadata": ({"metadata": {str(n): "" for n in range(17)}}, InvalidInput, "metadata"),
    "expiry": ({"output_expires_after": -5}, InvalidInput, "expires_after"),
    "input": ({"input_file_id": "file-of-nobody"}, NotFound, "file-of-nobody"),
}


def test_batch_creation_with_invalid_options_is_rejected(make_client, tmp_path):
    here = make_client()
    file = stored(here, tmp_path, 2)
    for options, error, told in REFUSED.values():
        with pytest.raises(error, match=told):
            here.client.batches.create(**{"input_file_id": file.id, **options})

        assert list(here.client.batches.list()) == [], told


def test_batch_creation_from_output_file_is_rejected(make_client, tmp_path):
    here = make_client()
    batch = here.client.batches.create(input_file_id=stored(here, tmp_path).id, via=None)
    output = here.client.batches.run(batch.id).output_file_id

    with pytest.raises(InvalidInput, match="batch_output"):
        here.client.batches.create(input_file_id=output)


def test_batches_list_pages_and_filters_newest_first(make_client, tmp_path):
    here = make_client()
    file = stored(here, tmp_path, 2)
    made = [
        here.client.batches.create(input_file_id=file.id, metadata={"no": f"Number-{number}"}, via=None)
        for number in range(5)
    ]
    ids = [batch.id for batch in reversed(made)]
    here.client.batches.run(made[1].id)
    here.client.batches.cancel(made[3].id)

    page = here.client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (ids[:2], True)
    assert (page.first_id, page.last_id) == (ids[0], ids[1])
    assert [batch.id for batch in page] == ids
    assert [batch.id for batch in here.client.batches.list(after=ids[2])] == ids[3:]
    assert [batch.id for batch in here.client.batches.list(status="completed")] == [made[1].id]
    assert [batch.id for batch in here.client.batches.list(status="cancelled")] == [made[3].id]
    assert [batch.id for batch in here.client.batches.list(search="number-4")] == [made[4].id]
    assert [batch.id for batch in here.client.batches.list(active_first=True)] == [
        ids[0],
        ids[2],
        ids[4],
        ids[1],
        ids[3],
    ]
    assert here.client.batches.list(include="analytics", status="completed").data[0].analytics.total_requests == 2


def test_batches_list_with_invalid_query_is_rejected(make_client):
    batches = make_client().client.batches
    for query in ({"limit": 0}, {"limit": 101}, {"status": "done"}, {"colour": "red"}):
        with pytest.raises(InvalidInput):
            batches.list(**query)
    with pytest.raises(NotFound):
        batches.list(after="batch-of-nobody")


def test_resume_of_running_or_finished_batch_is_rejected(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 2})
    batch = here.client.batches.create(input_file_id=stored(here, tmp_path, 40).id)
    until(lambda: active_lease(batch.id))

    with pytest.raises(Conflict, match="is being run"):
        here.client.batches.resume(batch.id)
    here.client.batches.wait(batch.id, timeout_s=60)
    with pytest.raises(Conflict, match="is completed"):
        here.client.batches.resume(batch.id)


def test_client_close_stops_batch_and_another_client_continues(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 4})
    services = here.client.services
    with Batchline(services=services) as client:
        batch = client.batches.create(input_file_id=stored(here, tmp_path, 300).id)
        until(lambda: here.simulator.counters()["received"] >= 20)
    sent = here.simulator.counters()["received"]
    assert here.client.batches.retrieve(batch.id).status == "in_progress"
    with pytest.raises(Conflict, match="closed"):
        client.batches.resume(batch.id)

    assert here.client.batches.run(batch.id).status == "completed"
    assert 20 <= sent < here.simulator.counters()["received"] == 300


def test_unknown_batch_raises_not_found(make_client):
    batches = make_client().client.batches
    for ask in (
        batches.retrieve,
        batches.run,
        batches.resume,
        batches.retry,
        batches.wait,
        batches.delete,
        batches.report,
    ):
        with pytest.raises(NotFound, match="batch-of-nobody"):
            ask("batch-of-nobody")


@pytest.mark.parametrize("place", ["sqlite_and_disk"], indirect=True)
def test_queued_batches_start_no_additional_threads(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.05})
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))

    ids = [here.client.batches.create(input_file_id=file.id).id for _ in range(MAX_CONCURRENT_BATCHES * 2)]

    assert sum(thread.name == "runner" for thread in threading.enumerate()) <= MAX_CONCURRENT_BATCHES
    assert {here.client.batches.wait(each, timeout_s=60).status for each in ids} == {"completed"}

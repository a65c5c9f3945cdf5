"""Limits that pause a batch: an upstream that refuses the key, and requests that all fail in the same way."""

import pytest
from helpers.polling import until
from helpers.request_files import read_lines, write_requests

from batchline.engine.lease import active_lease
from batchline.models.errors import BatchPaused


def received(setup) -> int:
    return setup.simulator.counters()["received"]


def create_batch(setup, tmp_path, count, *, prompt="Question {}".format, **create):
    file = setup.client.files.create(file=write_requests(tmp_path / "r.jsonl", count, prompt=prompt))
    return setup.client.batches.create(input_file_id=file.id, **create)


def wait_until_paused(client, batch_id):
    until(lambda: not client.runner.is_running(batch_id) and active_lease(batch_id) is None)
    with pytest.raises(BatchPaused):
        client.batches.wait(batch_id)
    return client.batches.retrieve(batch_id)


def test_refused_key_pauses_the_batch_and_fails_no_request(make_client, tmp_path):
    setup = make_client(simulator={"api_key": "right"}, upstream={"max_in_flight": 4, "api_key": "wrong"})
    batch = create_batch(setup, tmp_path, 200)

    paused = wait_until_paused(setup.client, batch.id)

    assert paused.paused.code == "unauthorized"
    assert "answers 401" in paused.paused.message
    assert "check the upstream's api_key" in paused.paused.message
    assert (paused.request_counts.completed, paused.request_counts.failed) == (0, 0)
    assert received(setup) <= 4


def test_identical_failures_pause_the_batch_before_each_is_paid(make_client, tmp_path):
    setup = make_client(upstream={"max_in_flight": 4})
    batch = create_batch(setup, tmp_path, 500, prompt="{} simulate:status=422".format)

    paused = wait_until_paused(setup.client, batch.id)

    assert paused.paused.code == "identical_failures"
    assert "25 requests" in paused.paused.message
    assert 25 <= received(setup) <= 25 + 4
    assert paused.request_counts.failed == received(setup)


def test_batch_with_some_failures_is_not_paused(make_client, tmp_path):
    setup = make_client(upstream={"max_in_flight": 4})
    batch = create_batch(
        setup, tmp_path, 200, prompt=lambda number: f"{number}{' simulate:status=422' if number % 5 else ''}"
    )

    ended = setup.client.batches.wait(batch.id, timeout_s=60)

    assert (ended.status, ended.request_counts.completed) == ("completed", 40)


def test_resumed_batch_may_reach_the_limit_again(make_client, tmp_path):
    setup = make_client(upstream={"max_in_flight": 4})
    batch = create_batch(setup, tmp_path, 500, prompt="{} simulate:status=422".format)
    wait_until_paused(setup.client, batch.id)
    sent = received(setup)

    setup.client.batches.resume(batch.id)

    assert wait_until_paused(setup.client, batch.id).paused.code == "identical_failures"
    assert sent + 25 <= received(setup) <= sent + 25 + 4


def test_batch_with_on_limit_stop_ends_cancelled_with_the_reason(make_client, tmp_path):
    setup = make_client(upstream={"max_in_flight": 4})
    options = {"on_limit": "stop", "max_identical_failures": 10}
    batch = create_batch(setup, tmp_path, 500, prompt="{} simulate:status=422".format, options=options)

    ended = setup.client.batches.wait(batch.id, timeout_s=60)

    assert (ended.status, ended.paused) == ("cancelled", None)
    assert [error.code for error in ended.errors.data] == ["identical_failures"]
    assert "10 requests" in ended.errors.data[0].message
    assert 10 <= received(setup) == ended.request_counts.failed <= 10 + 4
    codes = {line["error"]["code"] for line in read_lines(setup.client, ended.error_file_id)}
    assert codes == {"invalid_request", "batch_cancelled"}

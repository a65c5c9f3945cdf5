"""A retry is a generation of its own: exactly the failed requests again, laid over what there is."""

import pytest
from helpers.request_files import read_lines, request_numbers, write_requests

from batchline.models.error_codes import UNANSWERED_CODES
from batchline.models.errors import Conflict, InvalidInput, NotFound
from batchline.models.ids import request_id

FAILING_ONCE = {"server_error": 0.4}
ONE_ATTEMPT = {"max_attempts": 1}


def finished(setup, path, **create):
    file = setup.client.files.create(file=path)
    batch = setup.client.batches.create(input_file_id=file.id, **create)
    return setup.client.batches.wait(batch.id, timeout_s=60)


def assert_each_once_in_order(client, batch, total):
    output, errors = read_lines(client, batch.output_file_id), read_lines(client, batch.error_file_id)
    assert request_numbers(output) == sorted(request_numbers(output))
    assert request_numbers(errors) == sorted(request_numbers(errors))
    assert sorted(request_numbers(output) + request_numbers(errors)) == list(range(total))
    failed = [line for line in errors if line["error"]["code"] not in UNANSWERED_CODES]
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(failed))
    assert all(line["error"] is None for line in output)
    assert all(line["error"] is not None for line in errors)


@pytest.mark.parametrize("chunk_requests", [7, None], ids=["small chunks", "one chunk"])
def test_retry_repeated_until_success_sends_only_failed_requests(make_client, tmp_path, chunk_requests):
    here = make_client(simulator=FAILING_ONCE, upstream=ONE_ATTEMPT, chunk_requests=chunk_requests)
    total = 120
    batch = finished(here, write_requests(tmp_path / "r.jsonl", total, blank_every=3))
    assert_each_once_in_order(here.client, batch, total)
    output_id, error_id, before = batch.output_file_id, batch.error_file_id, batch.request_counts.failed

    while batch.request_counts.failed:
        before = batch.request_counts.failed
        received = here.simulator.counters()["received"]
        here.client.batches.retry(batch.id)
        batch = here.client.batches.wait(batch.id, timeout_s=60)
        assert here.simulator.counters()["received"] == received + before
        assert_each_once_in_order(here.client, batch, total)
        assert batch.output_file_id == output_id
        assert batch.error_file_id in {error_id, None}

    assert batch.status == "completed"
    assert batch.error_file_id is None
    assert batch.analytics.total_requests == total


def test_retry_of_named_requests_sends_only_those(make_client, tmp_path):
    here = make_client(simulator=FAILING_ONCE, upstream=ONE_ATTEMPT, chunk_requests=10)
    batch = finished(here, write_requests(tmp_path / "r.jsonl", 60))
    failed = [item.id for item in here.client.batches.results(batch.id, status="failed")]
    received = here.simulator.counters()["received"]

    chosen = failed[1::2]
    begun = here.client.batches.retry_requests(batch.id, chosen, via=None)
    assert begun.status == "in_progress"
    assert begun.request_counts.failed == len(failed) - len(chosen)
    assert begun.completed_at is None
    waiting = [item.id for item in here.client.batches.results(batch.id, status="pending")]
    assert waiting == chosen

    batch = here.client.batches.run(batch.id)
    assert here.simulator.counters()["received"] == received + len(chosen)
    assert_each_once_in_order(here.client, batch, 60)


def test_retry_serves_previous_content_until_completed(make_client, tmp_path):
    here = make_client(simulator=FAILING_ONCE, upstream=ONE_ATTEMPT, chunk_requests=10)
    batch = finished(here, write_requests(tmp_path / "r.jsonl", 60))
    before = [read_lines(here.client, each) for each in (batch.output_file_id, batch.error_file_id)]

    here.client.batches.retry(batch.id, via=None)

    assert [read_lines(here.client, each) for each in (batch.output_file_id, batch.error_file_id)] == before
    published = here.client.services.store.read(f"batches/{batch.id}/output.jsonl")
    ended = here.client.batches.run(batch.id)
    assert len(read_lines(here.client, ended.output_file_id)) > len(before[0])
    assert here.client.services.store.read(f"batches/{batch.id}/output.jsonl") != published
    assert_each_once_in_order(here.client, ended, 60)


def test_retry_with_invalid_request_ids_is_rejected_and_changes_nothing(make_client, tmp_path):
    here = make_client()
    path = write_requests(
        tmp_path / "r.jsonl", 4, prompt=lambda number: "simulate:status=400" if number == 2 else f"Q {number}"
    )
    batch, other = finished(here, path), finished(here, path)
    failed, good = request_id(batch.id, 3), request_id(batch.id, 1)
    wrong = {
        "is unknown": request_id(batch.id, 99),
        "has not failed": good,
        "is neither a request id nor a custom_id of this batch": request_id(other.id, 3),
    }

    for reason, each in wrong.items():
        with pytest.raises(InvalidInput, match=f"{each}.*{reason}"):
            here.client.batches.retry_requests(batch.id, [failed, each])
    with pytest.raises(InvalidInput, match="neither a request id nor a custom_id"):
        here.client.batches.retry_requests(batch.id, ["request-77"])
    with pytest.raises(InvalidInput):
        here.client.batches.retry_requests(batch.id, [])

    assert here.client.batches.retrieve(batch.id) == batch


def test_retry_of_batch_in_other_state_is_rejected(make_client, tmp_path):
    here = make_client()
    fails = lambda _: "simulate:status=400"  # noqa: E731
    completed = finished(here, write_requests(tmp_path / "r.jsonl", 3))
    invalid = finished(here, ("bad.jsonl", b"{}\n"))
    unfinished = here.client.batches.create(input_file_id=completed.input_file_id, via=None)
    without_input = finished(here, write_requests(tmp_path / "r.jsonl", 3, prompt=fails))
    here.client.files.delete(without_input.input_file_id)

    for batch, error, words in (
        (completed, Conflict, "nothing to retry"),
        (invalid, Conflict, "nothing to retry"),
        (unfinished, Conflict, "is validating"),
        (without_input, NotFound, without_input.input_file_id),
    ):
        with pytest.raises(error, match=words):
            here.client.batches.retry(batch.id)


def test_retry_during_pending_retry_is_rejected(make_client, tmp_path):
    here = make_client()
    batch = finished(here, write_requests(tmp_path / "r.jsonl", 3, prompt=lambda _: "simulate:status=400"))
    assert batch.status == "failed"

    here.client.batches.retry(batch.id, via=None)

    with pytest.raises(Conflict):
        here.client.batches.retry(batch.id, via=None)
    ended = here.client.batches.run(batch.id)
    assert ended.status == "failed"
    assert_each_once_in_order(here.client, ended, 3)


def test_retry_of_scattered_failures_keeps_every_line(make_client, tmp_path):
    here = make_client(chunk_requests=50)
    path = write_requests(
        tmp_path / "r.jsonl",
        1_000,
        prompt=lambda number: "simulate:status=400" if number % 97 == 0 else f"Q {number}",
        blank_every=5,
    )
    batch = finished(here, path)
    errors = read_lines(here.client, batch.error_file_id)
    output = read_lines(here.client, batch.output_file_id)

    here.client.batches.retry(batch.id)
    batch = here.client.batches.wait(batch.id, timeout_s=60)

    assert read_lines(here.client, batch.output_file_id) == output
    assert request_numbers(read_lines(here.client, batch.error_file_id)) == request_numbers(errors)
    assert here.simulator.counters()["received"] == 1_000 + len(errors)

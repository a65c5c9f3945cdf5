"""Requests that a cancel or the end of the window left unanswered: they count as neither completed nor failed."""

from collections import Counter

import pytest
from helpers.polling import until
from helpers.request_files import chat_line, read_lines

from batchline import Batchline
from batchline.models import batches
from batchline.report.report_data import read_report
from batchline.storage.records.store import BatchRecord

HANGING = 5
PROMPTS = ["1?", "2?", "3 simulate:status=400", *(f"{number} simulate:hanging" for number in range(HANGING))]


def begun(client: Batchline, **create: object) -> BatchRecord:
    """Return a batch that has two answers and a failure, and waits for the others."""
    content = "\n".join(chat_line(number, prompt) for number, prompt in enumerate(PROMPTS)).encode()
    file = client.files.create(file=("r.jsonl", content))
    batch = client.batches.create(input_file_id=file.id, **create)
    records = client.services.records
    until(lambda: (records.get_batch(batch.id).completed, records.get_batch(batch.id).failed) == (2, 1))
    return records.get_batch(batch.id)


def end(client: Batchline, batch: BatchRecord, how: str) -> None:
    """Cancel the batch, or wait for the end of its window."""
    if how == "cancelled":
        client.batches.cancel(batch.id)
    client.batches.wait(batch.id, timeout_s=100)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_unanswered_requests_are_reported_but_not_counted_as_failed(make_client, how, monkeypatch):
    here = make_client(grace_s=0.1)
    if how == "expired":
        monkeypatch.setitem(batches._WINDOW_UNIT_S, "m", 8)
    batch = begun(here.client, completion_window="1m")

    end(here.client, batch, how)

    ended = here.client.batches.retrieve(batch.id)
    counts = ended.request_counts
    assert (ended.status, counts.total, counts.completed, counts.failed) == (how, 3 + HANGING, 2, 1)
    errors = Counter(line["error"]["code"] for line in read_lines(here.client, ended.error_file_id))
    assert errors == {"invalid_request": 1, f"batch_{how}": HANGING}
    report = read_report(here.client.services.store, batch.id)
    assert (report.completed, report.failed, getattr(report, how)) == (2, 1, HANGING)
    assert report.expired + report.cancelled == HANGING
    assert [model.failed for model in report.models] == [1]


def test_partial_retry_keeps_count_of_other_unanswered_requests(make_client):
    here = make_client(grace_s=0.1)
    batch = begun(here.client)
    end(here.client, batch, "cancelled")
    cancelled = [item.id for item in here.client.batches.results(batch.id, status="cancelled")]
    failed = [item.id for item in here.client.batches.results(batch.id, status="failed")]

    again = here.client.batches.retry_requests(batch.id, [*failed, cancelled[0]], via=None)

    assert (again.request_counts.completed, again.request_counts.failed) == (2, 0)
    record = here.client.services.records.get_batch(batch.id)
    assert (record.unanswered, record.failed) == (HANGING - 1, 0)
    here.client.batches.cancel(batch.id)
    ended = here.client.batches.run(batch.id)
    assert (ended.request_counts.completed, ended.request_counts.failed) == (2, 0)
    assert here.client.services.records.get_batch(batch.id).unanswered == HANGING + 1
    assert read_lines(here.client, ended.error_file_id)[0]["error"]["code"] == "batch_cancelled"

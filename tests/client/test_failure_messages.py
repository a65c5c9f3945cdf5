"""The most frequent message of each error code, in the report of a batch."""

import json

import pytest
from helpers.scripted_server import ScriptedServer, reply

from batchline import Batchline
from batchline.models.analytics import BatchReport, FailureMessage
from batchline.report.formatting import failures_text


@pytest.fixture
def run_batch(make_services, tmp_path):
    """Run a batch of requests that are refused with those messages, or answered if it is None."""
    servers = []

    def run(*messages: str | None):
        def script(request):
            message = messages[int(json.loads(request.body)["user"])]
            return reply() if message is None else reply(400, body={"error": {"message": message}})

        servers.append(ScriptedServer(script).start())
        client = Batchline(services=make_services(f"{servers[-1].base_url}/v1"))
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        request = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [
            json.dumps({"custom_id": str(number), **request, "body": {**body, "user": str(number)}})
            for number in range(len(messages))
        ]
        path = tmp_path / "r.jsonl"
        path.write_text("\n".join(lines))
        batch = client.batches.create(input_file_id=client.files.create(file=path).id)
        return client, client.batches.wait(batch.id, timeout_s=60)

    yield run
    for server in servers:
        server.stop()


def test_messages_that_differ_only_in_ids_count_as_one(run_batch):
    client, batch = run_batch(None, "other", "request 12 of org-a1 is too long", "request 7 of org-b2 is too long")

    [(code, found)] = client.batches.report(batch.id).failure_messages.items()
    assert (code, found.count) == ("invalid_request", 2)
    assert found.message in {"request 12 of org-a1 is too long", "request 7 of org-b2 is too long"}


def test_retry_counts_the_messages_of_failures_that_are_left(run_batch):
    client, batch = run_batch(None, "first", "first", "second", "second", "second")

    client.batches.retry_requests(batch.id, ["3", "5"], via=None)
    client.batches.run(batch.id)

    assert client.batches.report(batch.id).failure_messages == {
        "invalid_request": FailureMessage(message="second", count=3)
    }


def test_cancelled_requests_have_no_message(run_batch):
    client, batch = run_batch(None)
    waiting = client.batches.create(input_file_id=batch.input_file_id, via=None)
    client.batches.cancel(waiting.id)

    assert failures_text(client.batches.find_report(waiting.id)) == ""


def test_report_of_an_earlier_version_shows_codes_without_messages():
    report = BatchReport.model_validate({"failures": {"invalid_request": 1_200, "timeout": 1}})

    assert failures_text(report) == "invalid_request 1,200, timeout 1"

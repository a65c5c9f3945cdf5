"""Answers that were cut off or do not fit their schema: completed, marked, and counted."""

import json
import time

import pytest
from helpers.api_server import root_of, serve_api
from helpers.page_parser import Page
from helpers.scripted_server import ScriptedServer, reply
from helpers.web_client import WebClient

from batchline import Batchline
from batchline.models.errors import Conflict, InvalidInput
from batchline.orchestration.artifacts import outcome_markdown
from batchline.orchestration.final_state import outcome_message
from batchline.web import with_pages

SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


def answer(text: str, finish_reason: str = "stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return reply(body={"id": "a", "model": "m", "choices": [choice], "usage": usage})


ANSWERS = {
    "whole": answer('{"city": "Ulm"}'),
    "cut off": answer('{"city": "U', "length"),
    "does not fit": answer('{"town": "Ulm"}'),
    "refused": reply(400, body={"error": {"message": "The model `m` does not exist.", "code": "x"}}),
}


@pytest.fixture
def server():
    """A server that answers each prompt with the answer of that name."""
    started = ScriptedServer(lambda request: ANSWERS[json.loads(request.body)["messages"][0]["content"]]).start()
    yield started
    started.stop()


@pytest.fixture
def run_batch(server, make_services, tmp_path):
    """Run a batch of those prompts, which ask for a JSON schema, and return the client and the batch."""

    def run(*prompts: str, **options: str):
        services = make_services(f"{server.base_url}/v1", upstream={"backoff_base_s": 0.01}, lease_s=2)
        client = Batchline(services=services)
        schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
        lines = [
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "m",
                    "messages": [{"role": "user", "content": prompt}],
                    "response_format": schema,
                },
            }
            for number, prompt in enumerate(prompts)
        ]
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        batch = client.batches.create(input_file_id=client.files.create(file=path).id, options=options or None)
        return client, client.batches.wait(batch.id, timeout_s=60)

    return run


def test_flawed_answers_complete_with_a_mark(run_batch):
    client, batch = run_batch("whole", "cut off", "does not fit")

    assert (batch.status, batch.request_counts.completed) == ("completed", 3)
    items = list(client.batches.results(batch.id))
    assert [(item.status, item.finish_reason, item.mark) for item in items] == [
        ("completed", "stop", None),
        ("completed", "length", "truncated"),
        ("completed", "stop", "invalid_output"),
    ]
    report = client.batches.report(batch.id)
    assert report.marks == {"truncated": 1, "invalid_output": 1}
    assert report.finish_reasons == {"stop": 2, "length": 1}


def test_truncated_answers_fail_if_the_batch_says_so(run_batch):
    client, batch = run_batch("whole", "cut off", on_truncated="fail")

    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    error = list(client.batches.results(batch.id))[1].error
    assert error == "truncated: the answer was cut off by a limit of tokens (finish reason 'length')"
    assert client.batches.report(batch.id).wasted_tokens == 7


@pytest.mark.parametrize(("rule", "calls"), [("fail", 1), ("retry", 2)])
def test_invalid_output_fails_or_is_tried_once_more_if_the_batch_says_so(rule, calls, run_batch, server):
    client, batch = run_batch("does not fit", on_invalid_output=rule)

    assert (batch.status, len(server.received)) == ("failed", calls)
    [item] = client.batches.results(batch.id)
    assert item.error == 'invalid_output: $: "city" is a required property'


def test_report_page_says_once_what_to_do_about_marked_answers(run_batch):
    client, batch = run_batch("whole", "cut off", "does not fit", "refused")

    page = Page(b"".join(client.batches.files(batch.id)["report.html"]))
    page.assert_stands_alone()
    assert (
        "3 of 4 requests were answered (1 of them truncated, 1 of them with invalid output), 1 failed."
        in page.words()
    )
    row = page.row("truncated")
    assert row[1:3] == ["1", "33.3 % of the answers"]
    command = f"batchline batches retry {batch.id} --mark truncated"
    assert row[3] == f"Raise max_tokens in the requests, or send them again as they are: {command}"
    assert page.words().count(command) == 1
    assert page.row("stop")[1] == "2"
    assert page.row("length")[1] == "1"


def test_outcome_artifact_and_state_message_name_marks_and_messages(run_batch):
    client, batch = run_batch("whole", "cut off", "refused")
    record, report = client.batches.record(batch.id), client.batches.report(batch.id)

    assert outcome_message(record, report) == (
        "completed: 2 ok (1 of them truncated), 1 failed: "
        "invalid_request 1 (most often: The model `m` does not exist.)"
    )
    text = outcome_markdown(client.services, record, report)
    assert "| truncated | 1 | cut off by a limit of tokens | Raise max_tokens in the requests" in text
    assert f"`batchline batches retry {batch.id} --mark truncated` |" in text
    assert "| length | 1 |" in text


def test_web_page_retries_marked_requests(run_batch, server):
    client, batch = run_batch("whole", "cut off")
    server.script = lambda _: ANSWERS["whole"]
    with serve_api(client, with_pages) as url, WebClient(root_of(url)) as web:
        page = web.open(f"/batches/{batch.id}")
        page.assert_no_foreign_content()
        assert "Retry 1 marked truncated" in page.words()

        web.send(page, f"/batches/{batch.id}/retry")
        client.batches.wait(batch.id, timeout_s=60)
        assert "All 2 requests were answered." in web.open(f"/batches/{batch.id}").words()


def contents_and_marks(client, batch):
    """Return the text and the mark of each completed request's answer."""
    return [
        (item.response_body["choices"][0]["message"]["content"], item.mark)
        for item in client.batches.results(batch.id, status="completed")
    ]


def test_retry_of_a_mark_replaces_only_answers_that_have_it(run_batch, server):
    client, batch = run_batch("whole", "cut off", "does not fit", "cut off", "refused")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (4, 1)
    answers = iter([answer('{"city": "Ulm"}'), answer('{"city": "Ulm, Ne', "length")])
    server.received.clear()
    server.script = lambda _: next(answers)

    pending = client.batches.retry(batch.id, mark="truncated", via=None)

    assert pending.status == "in_progress"
    assert (pending.request_counts.completed, pending.request_counts.failed) == (2, 1)
    assert [item.status for item in client.batches.results(batch.id)] == [
        *("completed", "pending", "completed", "pending", "failed")
    ]
    ended = client.batches.run(batch.id)
    assert len(server.received) == 2
    assert (ended.request_counts.completed, ended.request_counts.failed) == (4, 1)
    assert (ended.output_file_id, ended.error_file_id) == (batch.output_file_id, batch.error_file_id)
    texts = [text for text, _ in contents_and_marks(client, batch)]
    assert sorted(texts[1::2]) == ['{"city": "Ulm"}', '{"city": "Ulm, Ne']
    assert texts[::2] == ['{"city": "Ulm"}', '{"town": "Ulm"}']
    report = client.batches.report(batch.id)
    assert report.marks == {"truncated": 1, "invalid_output": 1}
    assert (report.attempts, report.retries, report.wasted_tokens) == (7, {"truncated": 2}, 14)


def test_requests_of_a_marks_retry_count_as_completed_only_when_they_are_answered_again(run_batch, server):
    client, batch = run_batch("whole", "cut off", "cut off", "refused")
    one_by_one = iter([reply(after_s=1.5), reply(after_s=4)])
    server.script = lambda _: next(one_by_one)

    client.batches.retry(batch.id, mark="truncated")
    seen = []
    while (now := client.batches.retrieve(batch.id)).status == "in_progress":
        counts = (now.request_counts.completed, now.request_counts.failed)
        seen += [counts] if counts not in seen else []
        time.sleep(0.05)

    assert seen[:2] == [(1, 1), (2, 1)]
    assert client.batches.wait(batch.id, timeout_s=60).request_counts.completed == 3


def test_marked_request_that_fails_in_its_retry_is_failed(run_batch, server):
    client, batch = run_batch("whole", "cut off")
    server.script = lambda _: ANSWERS["refused"]

    client.batches.retry(batch.id, mark="truncated", via=None)
    ended = client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", 1, 1)
    assert [item.status for item in client.batches.results(batch.id)] == ["completed", "failed"]


def test_marked_request_that_its_retry_leaves_unanswered_keeps_its_answer(run_batch, server):
    client, batch = run_batch("whole", "cut off", "refused")
    before = contents_and_marks(client, batch)
    server.received.clear()

    client.batches.retry(batch.id, mark="truncated", via=None)
    client.batches.cancel(batch.id)
    ended = client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("cancelled", 2, 1)
    assert not server.received
    assert contents_and_marks(client, batch) == before


def test_retry_of_a_mark_that_no_request_has_is_refused_with_the_marks_that_there_are(run_batch):
    client, batch = run_batch("whole", "cut off", "refused")

    with pytest.raises(Conflict, match=r"no completed request is marked invalid_output \(there are 1 truncated\)"):
        client.batches.retry(batch.id, mark="invalid_output")
    with pytest.raises(InvalidInput, match="mark: Input should be 'truncated' or 'invalid_output'"):
        client.batches.retry(batch.id, mark="wrong")
    assert client.batches.retrieve(batch.id) == batch

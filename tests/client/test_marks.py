"""Answers that were cut off or do not fit their schema: completed, marked, and counted."""

import json

import pytest
from helpers.scripted_server import ScriptedServer, reply

from batchline import Batchline

SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


def answer(text: str, finish_reason: str = "stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return reply(body={"id": "a", "model": "m", "choices": [choice], "usage": usage})


ANSWERS = {
    "whole": answer('{"city": "Ulm"}'),
    "cut off": answer('{"city": "U', "length"),
    "does not fit": answer('{"town": "Ulm"}'),
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
        client = Batchline(services=make_services(f"{server.base_url}/v1", upstream={"backoff_base_s": 0.01}))
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

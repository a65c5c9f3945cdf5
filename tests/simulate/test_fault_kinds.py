"""Each kind of fault in a real batch: the end that the table, and with it docs/faults.md, promises."""

import json

import pytest
from helpers.polling import until
from helpers.request_files import read_lines
from helpers.transport_calls import send_directly

from batchline import Batchline
from batchline.engine.lease import active_lease
from batchline.models.settings import Settings
from batchline.models.upstreams import Upstream
from batchline.simulate import Simulator, SimulatorOptions
from batchline.simulate.fault_kinds import FAULT_KINDS, GROUPS, FaultKind, Repetition
from batchline.simulate.replies import decode_request, render_reply
from batchline.simulate.wire_replies import UNCOUNTED_REASONING_TOKENS
from batchline.upstream.dialects.judge import expectation_of, judge
from batchline.upstream.transports.base import TransportFailure
from batchline.upstream.transports.httpx import through_httpx
from batchline.upstream.transports.pyreqwest import PyreqwestTransport

MAX_ATTEMPTS = 3
WAIT_S = 0.4
CALLS = {Repetition.NONE: 1, Repetition.ONCE: 2, Repetition.ATTEMPTS: MAX_ATTEMPTS}
TRANSPORTS = {"pyreqwest": PyreqwestTransport, "httpx": through_httpx()}
SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}


def kinds(condition):
    return [pytest.param(kind, id=kind.name) for kind in FAULT_KINDS.values() if condition(kind)]


def is_patient(kind: FaultKind) -> bool:
    return kind.outcome.repetition is Repetition.PATIENT


def request_line(kind: FaultKind, prompt: str, number: int) -> str:
    body: dict[str, object] = {"model": "m", "user": str(number)}
    if kind.needs == "embeddings":
        path, body["input"] = "/v1/embeddings", [prompt, "two"]
    else:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
    if kind.needs == "schema":
        schema = {"name": "city", "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return json.dumps({"custom_id": f"r-{number}", "method": "POST", "url": path, "body": body}) + "\n"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    log = tmp_path_factory.mktemp("simulator") / "log.jsonl"
    with Simulator(SimulatorOptions(retry_after_s=WAIT_S, log_file=log)) as started:
        yield started


@pytest.fixture
def run_batch(simulator, make_services, tmp_path):
    """Run a batch of requests with that directive; return client, batch, simulator's counters and its log."""
    clients = []
    simulator.reset()
    log_start = simulator.options.log_file.stat().st_size

    def run(*asked: FaultKind, word: str = "fault"):
        timeout_s = 0.5 if asked[0].name == "hanging" else 30.0
        endpoint = "/v1/embeddings" if asked[0].needs == "embeddings" else "/v1/chat/completions"
        upstream = {"max_attempts": MAX_ATTEMPTS, "total_timeout_s": timeout_s, "max_in_flight": 1}
        client = Batchline(services=make_services(simulator.base_url, upstream=upstream))
        clients.append(client)
        path = tmp_path / "r.jsonl"
        lines = [
            request_line(kind, f"{number} simulate:{word}={kind.name}", number)
            for number, kind in enumerate(asked)
        ]
        path.write_text("".join(lines))
        file = client.files.create(file=path)
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint)
        until(lambda: not client.runner.is_running(batch.id) and active_lease(batch.id) is None)
        events = [json.loads(line) for line in simulator.options.log_file.read_bytes()[log_start:].splitlines()]
        return client, client.batches.retrieve(batch.id), simulator.counters(), events

    yield run
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", kinds(lambda kind: not is_patient(kind)))
def test_request_ends_as_the_table_says(kind, run_batch):
    client, batch, counted, _ = run_batch(kind)
    outcome = kind.outcome

    assert counted["faults"] == {kind.name: CALLS[outcome.repetition]}
    assert counted["received"] == CALLS[outcome.repetition]
    if outcome.pause is not None:
        assert (batch.status, batch.paused.code) == ("in_progress", outcome.pause)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (0, 0)
        return
    [result] = client.batches.results(batch.id)
    assert result.mark == outcome.mark
    if outcome.code is None:
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        return
    assert (batch.status, batch.request_counts.failed) == ("failed", 1)
    [line] = read_lines(client, batch.error_file_id)
    assert line["error"]["code"] == outcome.code


@pytest.mark.parametrize("kind", kinds(lambda kind: is_patient(kind) or kind.asks_wait))
def test_request_waits_as_long_as_it_is_asked_to(kind, run_batch):
    _, batch, counted, events = run_batch(kind, word="once")

    assert (batch.status, batch.request_counts.completed, counted["received"]) == ("completed", 1, 2)
    first, second = (event["at"] for event in events if event["event"] == "received")
    if kind.asks_wait:
        assert second - first >= WAIT_S * 0.95


def test_requests_that_are_answered_next_time_complete(run_batch):
    repeated = [
        kind
        for kind in FAULT_KINDS.values()
        if kind.outcome.repetition in {Repetition.ONCE, Repetition.ATTEMPTS}
        # The one takes long, the other needs another endpoint.
        and kind.name not in {"hanging", "missing_vector"}
    ]
    _, batch, counted, _ = run_batch(*repeated, word="once")

    assert (batch.status, batch.request_counts.completed) == ("completed", len(repeated))
    assert counted["received"] == 2 * len(repeated)
    assert counted["faults"] == {kind.name: 1 for kind in repeated}


def test_three_forbidden_requests_pause_the_batch(run_batch):
    _, batch, counted, _ = run_batch(*[FAULT_KINDS["forbidden"]] * 6)

    assert (batch.paused.code, counted["received"]) == ("unauthorized", 3)


def output_of(run_batch, name: str) -> dict:
    client, batch, _, _ = run_batch(FAULT_KINDS[name])
    [line] = read_lines(client, batch.output_file_id)
    return line["response"]


ODD_FORMS = (
    *("bom", "comment_lines", "done_after", "event_stream", "both_lengths", "length_twice", "chunk_spaces"),
    *("trailers", "bare_lf", "folded_header", "interim", "gzip_members"),
)


@pytest.mark.parametrize(
    "name", [*ODD_FORMS, "length_twice", "chunk_spaces", "trailers", "folded_header", "interim"]
)
def test_odd_form_of_an_answer_loses_nothing_of_it(name, run_batch):
    response = output_of(run_batch, name)

    assert response["request_id"].startswith("sim-")
    [choice] = response["body"]["choices"]
    assert choice["message"]["content"].startswith("the request was read and an answer follows")
    assert choice["finish_reason"] == "stop"
    assert response["body"]["usage"]["completion_tokens"] > 0


def test_reasoning_tokens_left_out_are_counted(run_batch):
    client, batch, counted, _ = run_batch(FAULT_KINDS["reasoning_left_out"])

    usage = client.batches.retrieve(batch.id).usage
    assert usage.output_tokens == counted["completion_tokens"] + UNCOUNTED_REASONING_TOKENS
    assert usage.input_tokens == counted["prompt_tokens"]


def test_usage_as_text_counts_as_not_reported(run_batch):
    client, batch, _, _ = run_batch(FAULT_KINDS["usage_strings"])

    usage = client.batches.retrieve(batch.id).usage
    assert usage is None or usage.total_tokens == 0


WITHOUT_FINISH_REASON = {"/v1/embeddings", "/v1/moderations"}


def applies(kind: FaultKind, path: str) -> bool:
    if kind.needs == "embeddings":
        return path == "/v1/embeddings"
    return kind.name not in {"finish_length", "content_filtered"} or path not in WITHOUT_FINISH_REASON


@pytest.mark.parametrize("path", Settings.model_fields["endpoints"].default)
def test_changed_answers_of_each_endpoint_are_judged_alike(path):
    messages = [{"role": "user", "content": "one"}]
    body = json.dumps({"model": "m", "messages": messages, "prompt": "one", "input": ["one", "two"]}).encode()
    answer = render_reply(path, decode_request(body), 5, 20)
    for kind in FAULT_KINDS.values():
        if kind.alter is None or kind.needs == "schema":
            continue
        reply = kind.alter(answer)
        if reply.framing is not None or reply.headers:
            continue
        judgement = judge(path, reply.status, reply.body, expectation_of(path, body))
        expected = (kind.outcome.code, kind.outcome.mark) if applies(kind, path) else (None, None)
        assert (judgement.code, judgement.mark) == expected, (kind.name, judgement.message)


@pytest.mark.parametrize("transport", ["pyreqwest", "httpx"])
def test_other_transports_get_the_outcomes_of_the_table(transport, simulator):
    upstream = Upstream(base_url=simulator.base_url, total_timeout_s=30)
    asked = [kind for kind in FAULT_KINDS.values() if kind.needs is None and kind.name != "hanging"]
    for kind in asked:
        request = json.loads(request_line(kind, f"simulate:fault={kind.name}", 0))
        [got] = send_directly(TRANSPORTS[transport], upstream, json.dumps(request["body"]).encode())
        if isinstance(got, TransportFailure):
            assert got.code == kind.outcome.code, kind.name
            continue
        judgement = judge(request["url"], got.status_code, got.body)
        assert judgement.mark == kind.outcome.mark, kind.name
        if kind.outcome.pause is None:
            assert judgement.code == kind.outcome.code, (kind.name, judgement.message)
        else:
            assert judgement.out_reason == kind.outcome.pause, kind.name


def test_kinds_have_names_in_snake_case_and_one_way_to_be_sent():
    for name, kind in FAULT_KINDS.items():
        assert name.isidentifier(), name
        assert name == name.lower(), name
        assert kind.refuse is None or kind.alter is None, name
    assert len(FAULT_KINDS) == sum(len(group) for group in GROUPS.values())

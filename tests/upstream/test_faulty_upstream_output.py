"""Whole batches against upstreams that misbehave: what ends up in storage."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.scripted_server import Received, error_reply, raw, reply

from batchline.engine.ingest import create_batch, store_input_file
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.status import BatchStatus
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord


def run_file(services: Services, path: Path) -> BatchRecord:
    stored = store_input_file(services, path)
    request = CreateBatchRequest(input_file_id=stored.id, endpoint="/v1/chat/completions")
    return run_local(services, create_batch(services, request, origin=BatchDwExtResponse(source="api")).id)


@pytest.mark.system
@pytest.mark.parametrize("fault", [raw(b"", reset=True), error_reply(503)], ids=["resets", "503"])
def test_batch_survives_an_outage_without_failed_requests(
    fault: Callable, serve: Callable, make_services: Callable, chat_file: Callable
) -> None:
    began = time.monotonic()
    server = serve(lambda request: fault if 0.3 < request.at - began < 1.3 else reply(after_s=0.02))
    # Retries wait long enough for others to be sent in between: it is first tries that tell an outage.
    upstream = {"max_attempts": 3, "max_in_flight": 8, "backoff_base_s": 0.5, "backoff_cap_s": 1}
    services = make_services(server.base_url, upstream=upstream, flush_interval_s=5)

    batch = run_file(services, chat_file(400))

    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 400, 0)


def test_response_is_stored_with_line_breaks_as_spaces(
    serve: Callable, make_services: Callable, chat_file: Callable
) -> None:
    choices = b'[{"message": {"content": "Yes."}}]'
    text = b'{"b": 1.10,\n "a": [12345678901234567890123, "\\ud800"],\r\n "choices": %b, "a": 2}' % choices
    services = make_services(serve(lambda _: reply(200, text)).base_url)

    batch = run_file(services, chat_file(1))

    [line] = services.store.read(layout.output_key(batch.id)).splitlines()
    assert b'"body":' + text.replace(b"\n", b" ").replace(b"\r", b" ") in line


def test_each_kind_of_failure_has_an_error_line_with_its_code(
    serve: Callable, make_services: Callable, chat_file: Callable
) -> None:
    acts = [reply(), error_reply(422), error_reply(500), reply(200, b"<html>"), raw(b"")]

    def script(request: Received) -> Callable:
        return acts[int(json.loads(request.body)["messages"][0]["content"]) % len(acts)]

    services = make_services(serve(script).base_url, upstream={"max_attempts": 2, "max_in_flight": 1})
    batch = run_file(services, chat_file(10, prompt=str))

    errors = [json.loads(line) for line in services.store.read(layout.errors_key(batch.id)).splitlines()]
    told = [
        (line["custom_id"], line["error"]["code"], (line["response"] or {}).get("status_code")) for line in errors
    ]
    kinds = [
        ("invalid_request", 422), ("server_error", 500), ("invalid_response", 200), ("connection_error", None),
    ]  # fmt: skip
    assert told == [(f"request-{5 * ten + at}", *kind) for ten in (0, 1) for at, kind in enumerate(kinds, 1)]


def test_upstream_key_is_in_no_file_of_the_batch(
    serve: Callable, make_services: Callable, chat_file: Callable, tmp_path: Path
) -> None:
    echo = {"error": {"message": "the key sk-very-secret may not do this"}}
    acts = [reply(), reply(400, echo), reply(500, echo), reply(200, echo), raw(b"")]
    server = serve(lambda request: acts[request.number % 5])
    services = make_services(server.base_url, upstream={"api_key": "sk-very-secret", "max_attempts": 2})

    run_file(services, chat_file(40))

    assert server.received[0].headers["authorization"] == "Bearer sk-very-secret"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 3
    assert [path.name for path in left if b"sk-very-secret" in path.read_bytes()] == []

"""A batch from file to results, without Prefect, against the simulator."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchline.engine.ingest import create_batch, store_input_file
from batchline.engine.lease import BatchLease, acquire_lease, active_lease
from batchline.engine.pipeline import run, run_local
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.errors import Interrupted
from batchline.models.status import BatchStatus
from batchline.steps.aggregate import aggregate
from batchline.steps.parts import Part
from batchline.steps.send_chunk import send_chunk
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord


def create_file_batch(services: Services, path: Path) -> BatchRecord:
    stored = store_input_file(services, path)
    request = CreateBatchRequest(input_file_id=stored.id, endpoint="/v1/chat/completions")
    return create_batch(services, request, origin=BatchDwExtResponse(source="api"))


def run_file(services: Services, path: Path) -> BatchRecord:
    return run_local(services, create_file_batch(services, path).id)


def lines_of(services: Services, key: str) -> list[dict]:
    return [json.loads(line) for line in services.store.read(key).splitlines()]


def test_requests_are_sent_once_and_results_are_in_input_order(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url, chunk_requests=100)

    batch = run_file(services, chat_file(1_234))

    output = lines_of(services, layout.output_key(batch.id))
    assert batch.status is BatchStatus.COMPLETED
    assert [line["custom_id"] for line in output] == [f"request-{number}" for number in range(1_234)]
    assert simulator.counters()["received"] == simulator.counters()["distinct"] == 1_234


def test_analytics_match_the_token_counts_of_the_upstream(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url)

    batch = run_file(services, chat_file(500))

    counted = simulator.counters()
    assert batch.analytics is not None
    assert batch.analytics.total_requests == 500
    assert batch.analytics.total_prompt_tokens == counted["prompt_tokens"]
    assert batch.analytics.total_completion_tokens == counted["completion_tokens"]


def test_finalizing_batch_shows_the_counts_of_all_requests(start_simulator, make_services, chat_file) -> None:
    services = make_services(start_simulator().base_url)
    seen: list[BatchRecord] = []

    def aggregate_seen(lease: BatchLease, parts: Sequence[Part]):
        seen.append(services.records.get_batch(lease.batch.id))
        return aggregate(lease, parts)

    path = chat_file(30, prompt=lambda n: "simulate:status=400" if n < 3 else "Question")
    batch = create_file_batch(services, path)
    with acquire_lease(services, batch.id) as lease:
        run(
            lease,
            send_all=lambda specs: [send_chunk(spec, lease) for spec in specs],
            aggregate=aggregate_seen,
        )

    assert [(each.status, each.completed, each.failed) for each in seen] == [(BatchStatus.FINALIZING, 27, 3)]


FAULTS = ["rate_limited", "server_error", "unavailable", "dropped", "cut_off", "truncated", "html", "error_object"]


@pytest.mark.parametrize("fault", FAULTS)
def test_occasional_upstream_faults_fail_no_request(
    fault: str, start_simulator: Callable, make_services: Callable, chat_file: Callable
) -> None:
    simulator = start_simulator(**{fault: 0.2, "retry_after_s": 0.01})
    services = make_services(simulator.base_url, upstream={"max_attempts": 20})

    batch = run_file(services, chat_file(300))

    assert (batch.completed, batch.failed) == (300, 0)
    assert simulator.counters()["faults"][fault] > 0


def test_requests_that_keep_failing_become_error_lines(start_simulator, make_services, chat_file) -> None:
    services = make_services(start_simulator().base_url, upstream={"max_attempts": 2})

    batch = run_file(
        services,
        chat_file(100, prompt=lambda number: "simulate:status=422" if number % 10 == 3 else f"Question {number}"),
    )

    errors = lines_of(services, layout.errors_key(batch.id))
    assert (batch.completed, batch.failed) == (90, 10)
    assert [line["custom_id"] for line in errors] == [f"request-{number}" for number in range(3, 100, 10)]
    assert {line["error"]["code"] for line in errors} == {"invalid_request"}
    assert {line["response"]["status_code"] for line in errors} == {422}


def test_rejected_upstream_key_fails_the_batch_early(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator(api_key="right")
    services = make_services(simulator.base_url, upstream={"api_key": "wrong", "max_in_flight": 4})

    batch = run_file(services, chat_file(1_000))

    codes = [line["error"]["code"] for line in lines_of(services, layout.errors_key(batch.id))]
    assert batch.status is BatchStatus.FAILED
    assert simulator.counters()["received"] < 50
    assert len(codes) == 1_000
    assert codes.count("batch_failed") > 900
    assert batch.errors is not None
    assert "check its API key" in batch.errors[0].message


def test_file_with_bad_line_fails_the_batch_and_sends_nothing(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    path = chat_file(10)
    path.write_text(path.read_text() + "not json\n")

    batch = run_file(services, path)

    assert batch.status is BatchStatus.FAILED
    assert [(error.code, error.line) for error in batch.errors or ()] == [("invalid_json_line", 11)]
    assert (batch.total, batch.completed, batch.failed) == (0, 0, 0)
    assert simulator.counters()["received"] == 0


def test_run_interrupted_during_validation_stops_and_can_be_resumed(
    start_simulator: Callable, make_services: Callable, tmp_path: Path
) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"not a request\n" * 200_000)
    batch = create_file_batch(services, path)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_local, services, batch.id)
        while (hold := active_lease(batch.id)) is None:
            time.sleep(0.001)
        hold.interrupt("stopped by a test")
        with pytest.raises(Interrupted, match="stopped by a test"):
            running.result()

    assert services.records.get_batch(batch.id).status is BatchStatus.VALIDATING
    assert run_local(services, batch.id).status is BatchStatus.FAILED

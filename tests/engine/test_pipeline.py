"""A batch from file to results, without Prefect, against the simulator."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.batch_assertions import errors_of, new_batch, output_of
from helpers.polling import until

from batchline.engine.lease import BatchLease, acquire_lease, active_lease
from batchline.engine.pipeline import run, run_local
from batchline.models.errors import BatchPaused, Interrupted
from batchline.models.status import BatchStatus
from batchline.steps.aggregate import aggregate
from batchline.steps.parts import Part
from batchline.steps.send_chunk import send_chunk
from batchline.storage.records.store import BatchRecord


def test_requests_are_sent_once_and_results_are_in_input_order(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url, chunk_requests=100)

    batch = run_local(services, new_batch(services, chat_file(1_234)).id)

    output = output_of(services, batch)
    assert batch.status is BatchStatus.COMPLETED
    assert [line["custom_id"] for line in output] == [f"request-{number}" for number in range(1_234)]
    assert simulator.counters()["received"] == simulator.counters()["distinct"] == 1_234


def test_finalizing_batch_shows_the_counts_of_all_requests(start_simulator, make_services, chat_file) -> None:
    services = make_services(start_simulator().base_url)
    seen: list[BatchRecord] = []

    def aggregate_seen(lease: BatchLease, parts: Sequence[Part]):
        seen.append(services.records.get_batch(lease.batch.id))
        return aggregate(lease, parts)

    path = chat_file(30, prompt=lambda n: "simulate:status=400" if n < 3 else "Question")
    batch = new_batch(services, path)
    with acquire_lease(services, batch.id) as lease:
        run(
            lease,
            send_all=lambda specs: [send_chunk(spec, lease) for spec in specs],
            aggregate=aggregate_seen,
        )

    assert [(each.status, each.completed, each.failed) for each in seen] == [(BatchStatus.FINALIZING, 27, 3)]


def test_requests_that_all_fail_in_the_same_way_pause_the_batch(start_simulator, make_services, chat_file) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4})
    batch = new_batch(services, chat_file(1_000, prompt="simulate:status=400 {}".format))

    with pytest.raises(BatchPaused):
        run_local(services, batch.id)

    batch = services.records.get_batch(batch.id)
    assert batch.pause is not None
    assert batch.pause.code == "identical_failures"
    assert (batch.completed, batch.failed) == (0, simulator.counters()["received"])
    assert 25 <= batch.failed < 25 + 4


def test_batch_that_stops_at_a_limit_ends_cancelled_with_the_reason(
    start_simulator, make_services, chat_file
) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4})
    path = chat_file(1_000, prompt="simulate:status=400 {}".format)
    batch = new_batch(services, path, options={"on_limit": "stop"})

    ended = run_local(services, batch.id)

    failed = simulator.counters()["received"]
    codes = [line["error"]["code"] for line in errors_of(services, ended)]
    assert (ended.status, ended.pause) == (BatchStatus.CANCELLED, None)
    assert [error.code for error in ended.errors or ()] == ["identical_failures"]
    assert (ended.completed, ended.failed) == (0, failed)
    assert 25 <= failed < 25 + 4
    assert (codes.count("invalid_request"), codes.count("batch_cancelled")) == (failed, 1_000 - failed)


def test_run_interrupted_during_validation_stops_and_can_be_resumed(
    start_simulator: Callable, make_services: Callable, tmp_path: Path
) -> None:
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"not a request\n" * 200_000)
    batch = new_batch(services, path)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_local, services, batch.id)
        until(lambda: active_lease(batch.id)).interrupt("stopped by a test")
        with pytest.raises(Interrupted, match="stopped by a test"):
            running.result()

    assert services.records.get_batch(batch.id).status is BatchStatus.VALIDATING
    assert run_local(services, batch.id).status is BatchStatus.FAILED

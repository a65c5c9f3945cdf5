"""Heartbeats that fail in odd ways: the run ends, and does not wait for ever for a lease that it has lost."""

import time

import pytest
from helpers.batch_assertions import check_results, count_saved, received, resume_batch
from helpers.polling import until

from batchline.models.errors import LeaseLost

pytestmark = pytest.mark.system

TIMEOUT_S = 60.0


def test_deleted_batch_ends_its_run(start_simulator, make_services, create_batch, in_background):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4})
    batch = create_batch(services, 400)
    run = in_background(services, batch)
    until(lambda: received(simulator) > 4)

    services.records.delete_batch(batch.id, now=time.time() + 1_000, lease_s=1)

    with pytest.raises(LeaseLost, match="was deleted while it ran"):
        run.result(TIMEOUT_S)
    assert received(simulator) < 400


def test_heartbeat_with_unexpected_error_ends_run_and_keeps_answers(
    start_simulator, make_services, create_batch, in_background, monkeypatch, caplog
):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4}, lease_s=2.0, flush_interval_s=60.0)
    batch = create_batch(services, 400)
    run = in_background(services, batch)
    until(lambda: received(simulator) > 4)

    with monkeypatch.context() as here:
        here.setattr(services.records, "heartbeat", lambda *_, **__: 1 / 0)
        with pytest.raises(LeaseLost, match="no heartbeat for half a lease: division by zero"):
            run.result(TIMEOUT_S)
    assert "ZeroDivisionError" in caplog.text
    assert count_saved(services, batch) == received(simulator) < 400

    check_results(services, resume_batch(services, batch.id), 400)
    assert received(simulator) == 400

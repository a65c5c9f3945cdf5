"""Heartbeats that fail in odd ways: the run ends, and does not wait for ever for a lease that it has lost."""

import time
from collections.abc import Callable

import pytest
from helpers.batch_assertions import check_account, received, resumed, saved
from helpers.polling import until

from batchline.engine.services import Services
from batchline.models.errors import LeaseLost
from batchline.simulate import Simulator

pytestmark = pytest.mark.system

PATIENCE_S = 60.0


def test_deleted_batch_ends_its_run(
    simulator: Callable[..., Simulator],
    engine_for: Callable[..., Services],
    batch_of: Callable,
    in_background: Callable,
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 4})
    batch = batch_of(engine, 400)
    run = in_background(engine, batch)
    until(lambda: received(stand_in) > 4)

    engine.records.delete_batch(batch.id, now=time.time() + 1_000, lease_s=1)

    with pytest.raises(LeaseLost, match="was deleted while it ran"):
        run.result(PATIENCE_S)
    assert received(stand_in) < 400


def test_heartbeat_with_unexpected_error_ends_run_and_keeps_answers(
    simulator: Callable[..., Simulator],
    engine_for: Callable[..., Services],
    batch_of: Callable,
    in_background: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 4}, lease_s=2.0, flush_interval_s=60.0)
    batch = batch_of(engine, 400)
    run = in_background(engine, batch)
    until(lambda: received(stand_in) > 4)

    with monkeypatch.context() as here:
        here.setattr(engine.records, "heartbeat", lambda *_, **__: 1 / 0)
        with pytest.raises(LeaseLost, match="no heartbeat for half a lease: division by zero"):
            run.result(PATIENCE_S)
    assert "ZeroDivisionError" in caplog.text
    assert saved(engine, batch) == received(stand_in) < 400

    check_account(engine, resumed(engine, batch.id), 400)
    assert received(stand_in) == 400

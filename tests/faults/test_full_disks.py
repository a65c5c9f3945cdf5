"""A disk without room: the batch claims nothing that is not stored, and goes on once there is room."""

import tempfile
from collections.abc import Callable

import pytest
from helpers.batch_assertions import check_results, check_unfinished, count_saved, received, resume_batch
from helpers.polling import until

from batchline.engine.pipeline import run_local
from batchline.models.errors import LeaseLost, StorageFault
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.steps import segment_writer

pytestmark = pytest.mark.system

ENOUGH_KIB = 64 * 1024
ANSWER_TOKENS = 1_000
"""Some 4 KB an answer."""


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.1, answer_tokens=ANSWER_TOKENS)


def test_part_over_free_space_is_written_once_space_returns(
    simulator, make_services, create_batch, small_disk, in_background, caplog
):
    # So long that the part is the first that is written.
    services = make_services(simulator.base_url, storage_url=str(small_disk.place), flush_interval_s=60.0)
    batch = create_batch(services, 400)
    run = in_background(services, batch)
    until(lambda: "sending waits for storage" in caplog.text)
    assert received(simulator) == 400

    small_disk.resize(ENOUGH_KIB)
    ended = run.result()

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 400)
    assert received(simulator) == 400


def test_full_database_disk_stops_run_before_takeover(start_simulator, make_services, create_batch, small_disk):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(
        simulator.base_url,
        upstream={"max_in_flight": 16},
        database_url=f"sqlite:///{small_disk.place}/records.db",
        lease_s=1.0,
    )
    batch = create_batch(services, 300)
    ballast = small_disk.fill()
    with pytest.raises((LeaseLost, StorageFault)):
        run_local(services, batch.id)
    sent = received(simulator)
    assert sent < 300

    ballast.unlink()
    ended = resume_batch(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 300)
    assert received(simulator) == 300


def test_full_database_disk_stops_heartbeat_but_keeps_answers(
    start_simulator, make_services, create_batch, small_disk, in_background
):
    simulator = start_simulator(latency_s=0.5)
    services = make_services(
        simulator.base_url,
        upstream={"max_in_flight": 16},
        database_url=f"sqlite:///{small_disk.place}/records.db",
        lease_s=2.0,
        flush_interval_s=60.0,
    )
    batch = create_batch(services, 300)
    run = in_background(services, batch)
    until(lambda: received(simulator))
    ballast = small_disk.fill()
    with pytest.raises(LeaseLost, match="no heartbeat for half a lease"):
        run.result()
    sent, kept = received(simulator), count_saved(services, batch)

    ballast.unlink()
    ended = resume_batch(services, batch.id)

    assert 0 < kept == sent < 300
    check_results(services, ended, 300)
    assert received(simulator) == 300


def test_full_temporary_directory_stops_sending_and_keeps_answers(
    simulator, make_services, create_batch, small_disk, monkeypatch
):
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.5)
    services = make_services(simulator.base_url, flush_interval_s=60.0)
    batch = create_batch(services, 500)
    with monkeypatch.context() as here:
        here.setattr(tempfile, "tempdir", str(small_disk.place))
        with pytest.raises(StorageFault, match="TMPDIR"):
            run_local(services, batch.id)
    check_unfinished(services, batch, BatchStatus.IN_PROGRESS)
    sent, kept = received(simulator), count_saved(services, batch)

    ended = run_local(services, batch.id)

    assert 0 < kept == sent < 500
    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 500)
    assert received(simulator) == 500

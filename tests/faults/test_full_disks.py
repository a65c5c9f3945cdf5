"""A disk without room: the batch claims nothing that is not stored, and goes on once there is room."""

import tempfile
import time
from collections.abc import Callable

import pytest
from helpers.batch_assertions import check_account, check_not_over, received, resumed, saved
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
def stand_in(simulator: Callable[..., Simulator]) -> Simulator:
    return simulator(latency_s=0.1, answer_tokens=ANSWER_TOKENS)


def test_full_disk_stops_run_and_keeps_saved_answers(
    stand_in: Simulator, engine_for: Callable, batch_of: Callable, small_disk, monkeypatch
) -> None:
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.5)
    engine = engine_for(stand_in.base_url, storage_url=str(small_disk.place))
    batch = batch_of(engine, 500)
    with pytest.raises(StorageFault, match="the disk is full"):
        run_local(engine, batch.id)
    check_not_over(engine, batch, BatchStatus.IN_PROGRESS)
    sent, kept = received(stand_in), saved(engine, batch)

    small_disk.resize(ENOUGH_KIB)
    ended = run_local(engine, batch.id)

    assert 0 < kept < 500
    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 500)
    assert received(stand_in) - sent == 500 - kept


def test_full_disk_pauses_sending_until_space_returns(
    stand_in: Simulator, engine_for: Callable, batch_of: Callable, small_disk, in_background: Callable, caplog
) -> None:
    engine = engine_for(stand_in.base_url, storage_url=str(small_disk.place), chunk_requests=1_200)
    batch = batch_of(engine, 1_200)
    run = in_background(engine, batch)
    until(lambda: "sending waits for storage" in caplog.text)
    until(lambda: is_quiet(stand_in))
    assert received(stand_in) < 1_200
    check_not_over(engine, batch, BatchStatus.IN_PROGRESS)

    small_disk.resize(ENOUGH_KIB)
    ended = run.result()

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 1_200)
    assert received(stand_in) == 1_200


def is_quiet(stand_in: Simulator) -> bool:
    """Whether nothing comes any more."""
    before = received(stand_in)
    time.sleep(0.3)
    return received(stand_in) == before


def test_part_over_free_space_is_written_once_space_returns(
    stand_in: Simulator, engine_for: Callable, batch_of: Callable, small_disk, in_background: Callable, caplog
) -> None:
    # So long that the part is the first that is written.
    engine = engine_for(stand_in.base_url, storage_url=str(small_disk.place), flush_interval_s=60.0)
    batch = batch_of(engine, 400)
    run = in_background(engine, batch)
    until(lambda: "sending waits for storage" in caplog.text)
    assert received(stand_in) == 400

    small_disk.resize(ENOUGH_KIB)
    ended = run.result()

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 400)
    assert received(stand_in) == 400


def test_final_files_over_free_space_leave_batch_finalizing(
    stand_in: Simulator, engine_for: Callable, batch_of: Callable, small_disk
) -> None:
    small_disk.resize(3_000)
    engine = engine_for(
        stand_in.base_url, storage_url=str(small_disk.place), flush_interval_s=60, chunk_requests=50
    )
    batch = batch_of(engine, 500)
    with pytest.raises(StorageFault, match="the disk is full"):
        run_local(engine, batch.id)
    check_not_over(engine, batch, BatchStatus.FINALIZING)

    small_disk.resize(ENOUGH_KIB)
    ended = run_local(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 500)
    assert received(stand_in) == 500


def test_full_database_disk_stops_run_before_takeover(
    simulator: Callable, engine_for: Callable, batch_of: Callable, small_disk
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(
        stand_in.base_url,
        upstream={"max_in_flight": 16},
        database_url=f"sqlite:///{small_disk.place}/records.db",
        lease_s=1.0,
    )
    batch = batch_of(engine, 300)
    ballast = small_disk.fill()
    with pytest.raises((LeaseLost, StorageFault)):
        run_local(engine, batch.id)
    sent = received(stand_in)
    assert sent < 300

    ballast.unlink()
    ended = resumed(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 300)
    assert received(stand_in) == 300


def test_full_database_disk_stops_heartbeat_but_keeps_answers(
    simulator: Callable, engine_for: Callable, batch_of: Callable, small_disk, in_background: Callable
) -> None:
    stand_in = simulator(latency_s=0.5)
    engine = engine_for(
        stand_in.base_url,
        upstream={"max_in_flight": 16},
        database_url=f"sqlite:///{small_disk.place}/records.db",
        lease_s=2.0,
        flush_interval_s=60.0,
    )
    batch = batch_of(engine, 300)
    run = in_background(engine, batch)
    until(lambda: received(stand_in))
    ballast = small_disk.fill()
    with pytest.raises(LeaseLost, match="no heartbeat for half a lease"):
        run.result()
    sent, kept = received(stand_in), saved(engine, batch)

    ballast.unlink()
    ended = resumed(engine, batch.id)

    assert 0 < kept == sent < 300
    check_account(engine, ended, 300)
    assert received(stand_in) == 300


def test_full_temporary_directory_stops_sending_and_keeps_answers(
    stand_in: Simulator, engine_for: Callable, batch_of: Callable, small_disk, monkeypatch
) -> None:
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.5)
    engine = engine_for(stand_in.base_url, flush_interval_s=60.0)
    batch = batch_of(engine, 500)
    with monkeypatch.context() as here:
        here.setattr(tempfile, "tempdir", str(small_disk.place))
        with pytest.raises(StorageFault, match="TMPDIR"):
            run_local(engine, batch.id)
    check_not_over(engine, batch, BatchStatus.IN_PROGRESS)
    sent, kept = received(stand_in), saved(engine, batch)

    ended = run_local(engine, batch.id)

    assert 0 < kept == sent < 500
    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 500)
    assert received(stand_in) == 500

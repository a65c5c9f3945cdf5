"""Batches that end before all is sent: their window closes, or they are cancelled."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.batch_assertions import check_account, error_codes, interrupt, made_batch, received, resumed
from helpers.polling import until
from helpers.record_edits import change_batch
from helpers.sample_records import list_page

from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.batches import ListBatchesQuery
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.records.store import BatchRecord

NO_WINDOW_S = -1


def close_window(engine: Services, batch: BatchRecord, *, in_s: int) -> None:
    """Let the batch's window close so many seconds from now."""
    change_batch(engine.records, batch.id, expires_at=int(time.time()) + in_s)


def cancel(engine: Services, batch: BatchRecord) -> None:
    engine.records.change_status(batch.id, BatchStatus.CANCELLING, now=int(time.time()))


# The window


def test_window_end_keeps_finished_requests_and_expires_rest(
    simulator: Callable, engine_for: Callable, batch_of: Callable
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8})
    batch = batch_of(engine, 500)
    close_window(engine, batch, in_s=2)

    ended = run_local(engine, batch.id)

    assert (ended.status, ended.completed_at) == (BatchStatus.EXPIRED, None)
    assert ended.expired_at is not None
    assert ended.expired_at >= ended.expires_at
    check_account(engine, ended, 500)
    assert error_codes(engine, ended) == {"batch_expired": ended.unanswered}
    assert ended.completed == received(stand_in) > 0


def test_requests_in_flight_beyond_grace_period_expire(
    simulator: Callable, engine_for: Callable, batch_of: Callable
) -> None:
    stand_in = simulator(latency_s=30)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8}, grace_s=0.2)
    batch = batch_of(engine, 20)
    close_window(engine, batch, in_s=1)
    began = time.monotonic()

    ended = run_local(engine, batch.id)

    assert time.monotonic() - began < 20  # and not the 30 s that an answer takes
    assert ended.status is BatchStatus.EXPIRED
    assert error_codes(engine, ended) == {"batch_expired": 20}
    check_account(engine, ended, 20)


def test_batch_resumed_after_window_expires_without_sending(
    simulator: Callable, engine_for: Callable, batch_of: Callable, in_background: Callable
) -> None:
    stand_in = simulator(latency_s=0.05)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8})
    batch = batch_of(engine, 300)
    interrupt(batch, in_background(engine, batch), once=lambda: received(stand_in) > 40)
    before = received(stand_in)
    close_window(engine, batch, in_s=NO_WINDOW_S)

    ended = run_local(engine, batch.id)

    assert ended.status is BatchStatus.EXPIRED
    assert received(stand_in) == before == ended.completed
    check_account(engine, ended, 300)
    assert error_codes(engine, ended) == {"batch_expired": 300 - before}


def test_batch_running_past_window_completes_but_is_listed_as_expired(
    simulator: Callable, engine_for: Callable, batch_of: Callable
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8}, run_past_window=True)
    batch = batch_of(engine, 40)
    close_window(engine, batch, in_s=NO_WINDOW_S)

    ended = run_local(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 40)
    listed = list_page(engine.records, ListBatchesQuery(status="expired"), now=int(time.time()))
    assert [entry.id for entry in listed.data] == [batch.id]


def test_batch_unvalidated_at_window_end_expires_without_files(
    simulator: Callable, engine_for: Callable, batch_of: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url)
    batch = batch_of(engine, 10)
    close_window(engine, batch, in_s=NO_WINDOW_S)

    check_nothing_was_done(engine, stand_in, run_local(engine, batch.id), BatchStatus.EXPIRED)


def check_nothing_was_done(engine: Services, stand_in: Simulator, ended: BatchRecord, status: BatchStatus) -> None:
    """The batch ended with that status before it was validated: no counts, no files, nothing sent."""
    assert ended.status is status
    assert (ended.total, ended.completed, ended.failed) == (0, 0, 0)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert received(stand_in) == 0
    assert engine.records.get_batch(ended.id).status is status


# Cancelling


def test_cancel_takes_effect_soon_and_keeps_finished_requests(
    simulator: Callable, engine_for: Callable, batch_of: Callable, in_background: Callable
) -> None:
    stand_in = simulator(latency_s=0.1)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8})
    batch = batch_of(engine, 1_000)
    run = in_background(engine, batch)
    until(lambda: received(stand_in) > 40)

    cancel(engine, batch)
    at_cancel, began = received(stand_in), time.monotonic()
    ended = run.result()

    assert time.monotonic() - began < 4
    assert received(stand_in) - at_cancel < 2.5 * 8 / 0.1
    assert (ended.status, ended.completed_at, ended.finalizing_at) == (BatchStatus.CANCELLED, None, None)
    assert ended.cancelling_at is not None
    assert ended.cancelled_at is not None
    check_account(engine, ended, 1_000)
    assert ended.completed == received(stand_in) > 0
    assert error_codes(engine, ended) == {"batch_cancelled": ended.unanswered}


def test_cancel_drops_requests_in_flight_after_grace_period(
    simulator: Callable, engine_for: Callable, batch_of: Callable, in_background: Callable
) -> None:
    stand_in = simulator(latency_s=30)
    engine = engine_for(stand_in.base_url, grace_s=0.2)
    batch = batch_of(engine, 100)
    run = in_background(engine, batch)
    until(lambda: received(stand_in) >= 64)

    cancel(engine, batch)
    began = time.monotonic()
    ended = run.result()

    assert time.monotonic() - began < 20  # and not the 30 s that an answer takes
    assert ended.status is BatchStatus.CANCELLED
    assert error_codes(engine, ended) == {"batch_cancelled": 100}
    check_account(engine, ended, 100)


def test_interrupted_cancelling_batch_is_finished_without_sending(
    simulator: Callable, engine_for: Callable, batch_of: Callable, in_background: Callable
) -> None:
    stand_in = simulator(latency_s=0.05)
    engine = engine_for(stand_in.base_url, upstream={"max_in_flight": 8})
    batch = batch_of(engine, 500)
    interrupt(batch, in_background(engine, batch), once=lambda: received(stand_in) > 40)
    before = received(stand_in)
    cancel(engine, batch)

    ended = run_local(engine, batch.id)

    assert ended.status is BatchStatus.CANCELLED
    assert received(stand_in) == before == ended.completed
    check_account(engine, ended, 500)


def test_batch_cancelled_before_run_ends_without_files(
    simulator: Callable, engine_for: Callable, batch_of: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url)
    batch = batch_of(engine, 10)
    cancel(engine, batch)

    check_nothing_was_done(engine, stand_in, run_local(engine, batch.id), BatchStatus.CANCELLED)


def test_batch_cancelled_during_validation_ends_without_files(
    simulator: Callable, engine_for: Callable, slow_to_validate: Path, in_background: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url)
    batch = made_batch(engine, slow_to_validate)
    run = in_background(engine, batch)
    until(lambda: active_lease(batch.id))
    cancel(engine, batch)

    check_nothing_was_done(engine, stand_in, run.result(), BatchStatus.CANCELLED)


def test_batch_cancelled_at_end_of_validation_ends_without_files(
    simulator: Callable, engine_for: Callable, batch_of: Callable, in_background: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url)
    batch = batch_of(engine, 20_000)
    run = in_background(engine, batch)
    until(lambda: active_lease(batch.id), every_s=0.0)
    cancel(engine, batch)

    check_nothing_was_done(engine, stand_in, run.result(), BatchStatus.CANCELLED)


def test_invalid_file_cancelled_during_validation_ends_as_cancelled(
    simulator: Callable, engine_for: Callable, slow_to_validate: Path, in_background: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url)
    slow_to_validate.write_text(slow_to_validate.read_text() + "not json\n")
    batch = made_batch(engine, slow_to_validate)
    run = in_background(engine, batch)
    until(lambda: active_lease(batch.id))
    cancel(engine, batch)

    check_nothing_was_done(engine, stand_in, run.result(), BatchStatus.CANCELLED)


@pytest.mark.system
def test_batch_cancelled_during_validation_of_killed_runner_ends_without_files(
    simulator: Callable, engine_for: Callable, slow_to_validate: Path, start: Callable
) -> None:
    stand_in = simulator()
    engine = engine_for(stand_in.base_url, lease_s=1.0)
    batch = made_batch(engine, slow_to_validate)
    runner = start(engine, batch)
    until(lambda: engine.records.get_batch(batch.id).lease_owner)
    runner.kill()
    cancel(engine, batch)

    check_nothing_was_done(engine, stand_in, resumed(engine, batch.id), BatchStatus.CANCELLED)

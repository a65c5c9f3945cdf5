"""Batches that end before all is sent: their window closes, or they are cancelled."""

import time

import pytest
from helpers.batch_assertions import check_results, error_codes, interrupt_run, new_batch, received, resume_batch
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


def close_window(services: Services, batch: BatchRecord, *, in_s: int) -> None:
    """Make the batch's window close in the given number of seconds."""
    change_batch(services.records, batch.id, expires_at=int(time.time()) + in_s)


def cancel(services: Services, batch: BatchRecord) -> None:
    services.records.change_status(batch.id, BatchStatus.CANCELLING, now=int(time.time()))


# The window


def test_window_end_keeps_finished_requests_and_expires_rest(start_simulator, make_services, create_batch):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 8})
    batch = create_batch(services, 500)
    close_window(services, batch, in_s=2)

    ended = run_local(services, batch.id)

    assert (ended.status, ended.completed_at) == (BatchStatus.EXPIRED, None)
    assert ended.expired_at is not None
    assert ended.expired_at >= ended.expires_at
    check_results(services, ended, 500)
    assert error_codes(services, ended) == {"batch_expired": ended.unanswered}
    assert ended.completed == received(simulator) > 0


def test_batch_resumed_after_window_expires_without_sending(
    start_simulator, make_services, create_batch, in_background
):
    simulator = start_simulator(latency_s=0.05)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 8})
    batch = create_batch(services, 300)
    interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) > 40)
    before = received(simulator)
    close_window(services, batch, in_s=NO_WINDOW_S)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.EXPIRED
    assert received(simulator) == before == ended.completed
    check_results(services, ended, 300)
    assert error_codes(services, ended) == {"batch_expired": 300 - before}


def test_batch_running_past_window_completes_but_is_listed_as_expired(
    start_simulator, make_services, create_batch
):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 8}, run_past_window=True)
    batch = create_batch(services, 40)
    close_window(services, batch, in_s=NO_WINDOW_S)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 40)
    listed = list_page(services.records, ListBatchesQuery(status="expired"), now=int(time.time()))
    assert [entry.id for entry in listed.data] == [batch.id]


def test_batch_unvalidated_at_window_end_expires_without_files(start_simulator, make_services, create_batch):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    batch = create_batch(services, 10)
    close_window(services, batch, in_s=NO_WINDOW_S)

    check_nothing_was_done(services, simulator, run_local(services, batch.id), BatchStatus.EXPIRED)


def check_nothing_was_done(
    services: Services, simulator: Simulator, ended: BatchRecord, status: BatchStatus
) -> None:
    """The batch ended with that status before it was validated: no counts, no files, nothing sent."""
    assert ended.status is status
    assert (ended.total, ended.completed, ended.failed) == (0, 0, 0)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert received(simulator) == 0
    assert services.records.get_batch(ended.id).status is status


# Cancelling


@pytest.mark.parametrize("code", ["batch_expired", "batch_cancelled"])
def test_requests_in_flight_beyond_grace_period_get_code_of_batch_end(
    code, start_simulator, make_services, create_batch, in_background
):
    simulator = start_simulator(latency_s=30)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 8}, grace_s=0.2)
    batch = create_batch(services, 20)
    if code == "batch_expired":
        close_window(services, batch, in_s=2)
    run = in_background(services, batch)
    if code == "batch_cancelled":
        until(lambda: received(simulator) == 8)
        cancel(services, batch)
    began = time.monotonic()
    ended = run.result()

    assert time.monotonic() - began < 20  # and not the 30 s that an answer takes
    assert f"batch_{ended.status}" == code
    assert error_codes(services, ended) == {code: 20}
    check_results(services, ended, 20)


@pytest.mark.parametrize("last_line", ["", "not json\n"], ids=["valid", "invalid"])
def test_batch_cancelled_during_validation_ends_without_files(
    last_line, start_simulator, make_services, slow_to_validate, in_background
):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    slow_to_validate.write_text(slow_to_validate.read_text() + last_line)
    batch = new_batch(services, slow_to_validate)
    run = in_background(services, batch)
    until(lambda: active_lease(batch.id))
    cancel(services, batch)

    check_nothing_was_done(services, simulator, run.result(), BatchStatus.CANCELLED)


@pytest.mark.system
def test_batch_cancelled_during_validation_of_killed_runner_ends_without_files(
    start_simulator, make_services, slow_to_validate, start_runner
):
    simulator = start_simulator()
    services = make_services(simulator.base_url, lease_s=1.0)
    batch = new_batch(services, slow_to_validate)
    runner = start_runner(services, batch)
    until(lambda: services.records.get_batch(batch.id).lease_owner)
    runner.kill()
    cancel(services, batch)

    check_nothing_was_done(services, simulator, resume_batch(services, batch.id), BatchStatus.CANCELLED)

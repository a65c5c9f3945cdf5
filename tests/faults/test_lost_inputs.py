"""A batch whose input is gone or has changed can still be read, cancelled, expired and finished."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.batch_assertions import error_codes, errors_of, interrupt_run, output_of, received
from helpers.record_edits import change_batch

from batchline import Batchline
from batchline.engine import retry
from batchline.engine.pipeline import run_local
from batchline.engine.retry import retry_batch
from batchline.engine.services import Services
from batchline.models.errors import InputChanged, InvalidInput, NotFound
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.records.store import BatchRecord

TOTAL = 60

LOSSES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"Question 5", b"Questiom 5")),
}


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.03)


@pytest.fixture
def services(make_services: Callable[..., Services], simulator: Simulator) -> Services:
    few = {"max_in_flight": 4, "max_attempts": 1}
    return make_services(simulator.base_url, upstream=few, chunk_requests=10, flush_interval_s=0.05)


@pytest.fixture(params=LOSSES)
def stopped(
    request: pytest.FixtureRequest,
    services: Services,
    simulator: Simulator,
    create_batch: Callable,
    in_background: Callable,
) -> BatchRecord:
    """A batch that was interrupted, and whose input was lost then."""
    batch = create_batch(services, TOTAL)
    interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) >= 15)
    LOSSES[request.param](Path(services.store.uri(services.records.get_file(batch.input_file_id).key)))
    return services.records.get_batch(batch.id)


def check_ended(services: Services, ended: BatchRecord, code: str) -> None:
    """Each request has a line of its own in one of the files, and those without an answer have the code."""
    output, errors = output_of(services, ended), errors_of(services, ended)
    ids = Counter(line["id"] for line in output + errors)
    assert (len(ids), set(ids.values())) == (TOTAL, {1})
    assert len(output) >= 11
    assert set(error_codes(services, ended)) == {code}
    assert all(
        "input can no longer be read" in line["error"]["message"] for line in errors if not line["custom_id"]
    )
    assert len(list(Batchline(services=services).batches.results(ended.id))) == TOTAL


def test_lost_input_stops_run_with_hint_and_keeps_answers(services, stopped):
    with pytest.raises(InputChanged, match=f"batchline batches cancel {stopped.id}"):
        run_local(services, stopped.id)

    items = list(Batchline(services=services).batches.results(stopped.id, status="completed"))
    assert len(items) >= 11
    assert all(item.response_body for item in items)


def test_batch_with_lost_input_can_be_cancelled_and_keeps_answers(services, simulator, stopped):
    sent = received(simulator)
    Batchline(services=services).batches.cancel(stopped.id)

    ended = run_local(services, stopped.id)

    assert (ended.status, received(simulator)) == (BatchStatus.CANCELLED, sent)
    check_ended(services, ended, "batch_cancelled")


def test_batch_with_lost_input_expires_and_keeps_answers(services, simulator, stopped):
    sent = received(simulator)
    change_batch(services.records, stopped.id, expires_at=int(time.time()) - 1)

    ended = run_local(services, stopped.id)

    assert (ended.status, received(simulator)) == (BatchStatus.EXPIRED, sent)
    check_ended(services, ended, "batch_expired")


def test_batch_with_removed_upstream_can_be_cancelled(
    services, make_services, simulator, create_batch, in_background
):
    batch = create_batch(services, TOTAL)
    interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) >= 15)
    other = make_services(simulator.base_url, upstream={"models": ["another"]}, chunk_requests=10)
    with pytest.raises(InvalidInput, match="no upstream serves"):
        run_local(other, batch.id)
    Batchline(services=other).batches.cancel(batch.id)

    ended = run_local(other, batch.id)

    assert ended.status is BatchStatus.CANCELLED
    check_ended(other, ended, "batch_cancelled")
    assert all(line["custom_id"] for line in errors_of(other, ended))


@pytest.mark.parametrize("name", ["input_file_id", "error_file_id"])
def test_retry_with_file_deleted_meanwhile_is_rejected(name, make_services, simulator, create_batch, monkeypatch):
    services = make_services(simulator.base_url)
    batch = run_local(
        services, create_batch(services, 4, prompt=lambda number: "simulate:status=400" if number else "Well?").id
    )
    batch, whole_plan = services.records.get_batch(batch.id), retry.read_first_plan

    def deleted_meanwhile(*arguments: object) -> object:
        Batchline(services=services).files.delete(str(getattr(batch, name)))
        return whole_plan(*arguments)

    monkeypatch.setattr(retry, "read_first_plan", deleted_meanwhile)
    with pytest.raises(NotFound):
        retry_batch(services, batch.id)

    assert services.records.get_batch(batch.id) == batch

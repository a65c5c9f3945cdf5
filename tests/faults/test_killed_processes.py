"""`kill -9` at any moment: whoever goes on loses no request and repeats few."""

import random
from collections.abc import Callable

import pytest
from helpers.batch_assertions import check_results, new_batch, resume_batch
from helpers.polling import until

from batchline.engine.services import Services
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord

pytestmark = pytest.mark.system

REQUESTS = 450
IN_FLIGHT = 32
LATENCY_S = 0.1
FLUSH_S = 0.3
LATE_S = 0.3
"""Delay of a flush to expect on a busy machine."""

MOST_REPEATED = IN_FLIGHT + round((FLUSH_S + LATE_S) * IN_FLIGHT / LATENCY_S)
"""By one kill: what was under way, and what one flush interval can answer."""

RANDOM_MOMENTS = sorted(random.Random(4).sample(range(REQUESTS // 20, REQUESTS * 19 // 20), 2))


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=LATENCY_S)


@pytest.fixture
def services(make_services: Callable[..., Services], simulator: Simulator) -> Services:
    return make_services(
        simulator.base_url,
        upstream={"max_in_flight": IN_FLIGHT},
        chunk_requests=50,
        flush_interval_s=FLUSH_S,
        lease_s=0.6,
    )


@pytest.fixture
def run_and_kill(services: Services, start_runner: Callable) -> Callable:
    """Run a batch in a process, and kill that as soon as something is true."""

    def kill(batch: BatchRecord, *, once: Callable[[], object]) -> None:
        runner = start_runner(services, batch)
        until(once, every_s=0.001)
        assert runner.is_alive
        runner.kill()

    return kill


@pytest.mark.parametrize("moment", RANDOM_MOMENTS)
def test_batch_killed_at_random_moment_accounts_for_every_request(
    moment, simulator, services, create_batch, run_and_kill
):
    batch = create_batch(services, REQUESTS)
    run_and_kill(batch, once=lambda: simulator.counters()["received"] >= moment)

    ended = resume_batch(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    assert simulator.counters()["repeated"] <= MOST_REPEATED


def test_batch_killed_during_validation_is_validated_again(simulator, services, slow_to_validate, run_and_kill):
    batch = new_batch(services, slow_to_validate)
    run_and_kill(batch, once=lambda: services.records.get_batch(batch.id).lease_owner)
    assert services.records.get_batch(batch.id).status is BatchStatus.VALIDATING

    ended = resume_batch(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 800)
    assert simulator.counters()["received"] == 800


def is_finalizing(services: Services, batch: BatchRecord) -> bool:
    return services.records.get_batch(batch.id).status is BatchStatus.FINALIZING


def has_its_output_file(services: Services, batch: BatchRecord) -> bool:
    return services.store.exists(layout.output_key(batch.id))


@pytest.mark.parametrize("point", [is_finalizing, has_its_output_file], ids=["before the files", "between them"])
def test_batch_killed_while_finalizing_finishes_without_requests(
    point, simulator, services, create_batch, run_and_kill
):
    batch = create_batch(services, REQUESTS)
    run_and_kill(batch, once=lambda: point(services, batch))
    assert is_finalizing(services, batch)

    ended = resume_batch(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    assert simulator.counters()["received"] == REQUESTS

"""`kill -9` of a flow run on a real Prefect server, and the flow run that goes on with its batch."""

import time
from collections.abc import Callable, Iterator

import pytest
from helpers.batch_assertions import check_results, received
from helpers.polling import until
from helpers.prefect_settings import using_prefect
from helpers.runner_process import RUN_FLOW

from batchline.engine.services import Services, using_services
from batchline.flows.process_batch import process_batch
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.records.store import BatchRecord

pytestmark = pytest.mark.system

REQUESTS = 400
IN_FLIGHT = 16
LATENCY_S = 0.05
FLUSH_S = 0.3
LATE_S = 0.2


@pytest.fixture(autouse=True)
def prefect_server(prefect_api: str) -> Iterator[None]:
    """Where this process's runs are told, too."""
    with using_prefect(prefect_api):
        yield


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=LATENCY_S)


@pytest.fixture
def services(make_services: Callable[..., Services], simulator: Simulator) -> Services:
    return make_services(
        simulator.base_url,
        upstream={"max_in_flight": IN_FLIGHT},
        chunk_requests=100,
        flush_interval_s=FLUSH_S,
        lease_s=1.0,
    )


def resume(services: Services, batch: BatchRecord) -> BatchRecord:
    """Run the flow for the batch as soon as its old lease is stale."""
    lease_at = services.records.get_batch(batch.id).lease_at
    assert lease_at is not None
    until(lambda: time.time() > lease_at + services.settings.lease_s)
    with using_services(services):
        state = process_batch(batch_id=batch.id, return_state=True)
    assert state.is_completed()
    return services.records.get_batch(batch.id)


def test_killed_flow_run_is_continued_from_saved_answers(
    prefect_api: str, simulator: Simulator, services: Services, create_batch: Callable, start_runner: Callable
) -> None:
    batch = create_batch(services, REQUESTS)
    runner = start_runner(services, batch, program=RUN_FLOW, PREFECT_API_URL=prefect_api)
    until(lambda: received(simulator) > 250)
    runner.kill()

    ended = resume(services, batch)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    repeated = simulator.counters()["repeated"]
    assert repeated <= IN_FLIGHT + (FLUSH_S + LATE_S) * IN_FLIGHT / LATENCY_S

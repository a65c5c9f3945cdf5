"""Two runners of one batch: the second is refused, unless the first has been silent for too long."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers.batch_assertions import check_results, received, resume_batch
from helpers.polling import until

from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.errors import Conflict
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord

pytestmark = pytest.mark.system


def test_second_runner_is_rejected_and_changes_nothing(start_simulator, make_services, create_batch, start_runner):
    first, second = start_simulator(latency_s=0.1), start_simulator()
    services = make_services(first.base_url, upstream={"max_in_flight": 16})
    batch = create_batch(services, 160)
    runner = start_runner(services, batch)
    until(lambda: received(first) > 32)
    held = services.records.get_batch(batch.id)

    with pytest.raises(Conflict, match="is being run by another process"):
        run_local(make_services(second.base_url), batch.id)

    kept = services.records.get_batch(batch.id)
    assert (kept.lease_owner, kept.epoch, kept.status) == (held.lease_owner, held.epoch, held.status)
    assert runner.wait() == (0, "")
    check_results(services, services.records.get_batch(batch.id), 160)
    assert (received(first), received(second)) == (160, 0)


def taken_over(services: Services, batch: BatchRecord) -> bool:
    """Claim the batch; return True if that succeeded."""
    with suppress(Conflict):
        services.records.claim(batch.id, owner="another", now=time.time(), lease_s=services.settings.lease_s)
        return True
    return False


def test_live_runner_keeps_short_lease(start_simulator, make_services, create_batch, start_runner):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 8}, lease_s=1.0)
    batch = create_batch(services, 120)
    runner = start_runner(services, batch)
    until(lambda: received(simulator))

    until(lambda: taken_over(services, batch))

    assert services.records.get_batch(batch.id).status is BatchStatus.COMPLETED
    assert runner.wait() == (0, "")


@pytest.mark.parametrize(
    ("sent_before", "lease_s"), [(1, 2.0), (150, 0.6)], ids=["before its first heartbeat", "in its midst"]
)
def test_runner_paused_beyond_lease_sends_nothing_afterwards(
    sent_before, lease_s, start_simulator, make_services, create_batch, start_runner
):
    upstreams = [start_simulator(latency_s=0.1), start_simulator(latency_s=0.1)]
    options = {"upstream": {"max_in_flight": 32}, "chunk_requests": 100, "lease_s": lease_s}
    paused, taking_over = (make_services(upstream.base_url, **options) for upstream in upstreams)
    batch = create_batch(paused, 450)
    runner = start_runner(paused, batch)
    until(lambda: received(upstreams[0]) >= sent_before, every_s=0.001)
    runner.pause()

    with ThreadPoolExecutor(1) as pool:
        successor = pool.submit(resume_batch, taking_over, batch.id)
        until(lambda: received(upstreams[1]) >= 50)
        before = received(upstreams[0])
        runner.resume()
        assert not successor.done()
        status, told = runner.wait()
        after = received(upstreams[0])
        ended = successor.result()

    assert after == before
    assert (status, "has been taken over by another runner" in told) == (1, True)
    check_results(taking_over, ended, 450)
    assert taking_over.records.get_batch(batch.id).to_response() == ended.to_response()

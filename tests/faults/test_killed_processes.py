"""`kill -9` at any moment: whoever goes on loses no request and repeats few."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.batch_assertions import check_account, made_batch, resumed
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
"""How late a flush may be on a busy machine."""

MOST_REPEATED = IN_FLIGHT + round((FLUSH_S + LATE_S) * IN_FLIGHT / LATENCY_S)
"""By one kill: what was under way, and what one flush interval can answer."""

RANDOM_MOMENTS = sorted(random.Random(4).sample(range(REQUESTS // 20, REQUESTS * 19 // 20), 4))


@pytest.fixture
def stand_in(simulator: Callable[..., Simulator]) -> Simulator:
    return simulator(latency_s=LATENCY_S)


@pytest.fixture
def engine(engine_for: Callable[..., Services], stand_in: Simulator) -> Services:
    return engine_for(
        stand_in.base_url,
        upstream={"max_in_flight": IN_FLIGHT},
        chunk_requests=50,
        flush_interval_s=FLUSH_S,
        lease_s=0.6,
    )


@pytest.fixture
def run_and_kill(engine: Services, start: Callable) -> Callable:
    """Run a batch in a process, and kill that as soon as something is true."""

    def kill(batch: BatchRecord, *, once: Callable[[], object]) -> None:
        runner = start(engine, batch)
        until(once, every_s=0.001)
        assert runner.is_alive
        runner.kill()

    return kill


@pytest.mark.parametrize("moment", RANDOM_MOMENTS)
def test_batch_killed_at_random_moment_accounts_for_every_request(
    moment: int, stand_in: Simulator, engine: Services, batch_of: Callable, run_and_kill: Callable
) -> None:
    batch = batch_of(engine, REQUESTS)
    run_and_kill(batch, once=lambda: stand_in.counters()["received"] >= moment)

    ended = resumed(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, REQUESTS)
    assert stand_in.counters()["repeated"] <= MOST_REPEATED


def test_batch_killed_twice_accounts_for_every_request(
    stand_in: Simulator, engine: Services, batch_of: Callable, run_and_kill: Callable
) -> None:
    batch = batch_of(engine, REQUESTS)
    run_and_kill(batch, once=lambda: stand_in.counters()["received"] >= 150)
    until(lambda: is_free(engine, batch))
    run_and_kill(batch, once=lambda: stand_in.counters()["received"] >= 330)

    ended = resumed(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, REQUESTS)
    assert stand_in.counters()["repeated"] <= 2 * MOST_REPEATED


def is_free(engine: Services, batch: BatchRecord) -> bool:
    """Whether the lease of the one who had the batch is stale."""
    lease_at = engine.records.get_batch(batch.id).lease_at
    return lease_at is None or lease_at + engine.settings.lease_s < time.time()


def test_batch_killed_during_validation_is_validated_again(
    stand_in: Simulator, engine: Services, slow_to_validate: Path, run_and_kill: Callable
) -> None:
    batch = made_batch(engine, slow_to_validate)
    run_and_kill(batch, once=lambda: engine.records.get_batch(batch.id).lease_owner)
    assert engine.records.get_batch(batch.id).status is BatchStatus.VALIDATING

    ended = resumed(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, 800)
    assert stand_in.counters()["received"] == 800


def is_finalizing(engine: Services, batch: BatchRecord) -> bool:
    return engine.records.get_batch(batch.id).status is BatchStatus.FINALIZING


def has_its_output_file(engine: Services, batch: BatchRecord) -> bool:
    return engine.store.exists(layout.output_key(batch.id))


@pytest.mark.parametrize("point", [is_finalizing, has_its_output_file], ids=["before the files", "between them"])
def test_batch_killed_while_finalizing_finishes_without_requests(
    point: Callable[[Services, BatchRecord], bool],
    stand_in: Simulator,
    engine: Services,
    batch_of: Callable,
    run_and_kill: Callable,
) -> None:
    batch = batch_of(engine, REQUESTS)
    run_and_kill(batch, once=lambda: point(engine, batch))
    assert is_finalizing(engine, batch)

    ended = resumed(engine, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_account(engine, ended, REQUESTS)
    assert stand_in.counters()["received"] == REQUESTS

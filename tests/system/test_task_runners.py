"""Batches sent by other processes: on this machine, in a Dask cluster, in a Ray cluster."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from helpers.storage_servers import free_ports

from batchline.engine.ingest import store_input_file
from batchline.engine.services import Services, using_services
from batchline.flows.process_batch import process_batch
from batchline.models.errors import InvalidInput
from batchline.models.settings import to_environment
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]

TOTAL = 900


def run(services: Services, path: Path):
    stored = store_input_file(services, path)
    with using_services(services):
        return process_batch(input_file_id=stored.id, return_state=True)


@pytest.fixture
def engine_of(make_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Services]:
    """Services whose settings are also in the environment, where the processes that send find them."""

    def make(simulator: Simulator, **settings: object) -> Services:
        services = make_services(
            simulator.base_url, upstream={"max_in_flight": 16}, chunk_requests=100, processes=2, **settings
        )
        for name, text in to_environment(services.settings).items():
            monkeypatch.setenv(name, text)
        return services

    return make


def check_output(services: Services, batch) -> None:
    assert (batch.status, batch.request_counts.completed) == (BatchStatus.COMPLETED, TOTAL)
    key = services.records.get_file(batch.output_file_id).key
    lines = [json.loads(line)["custom_id"] for line in services.store.read(key).splitlines()]
    assert lines == [f"request-{number}" for number in range(TOTAL)]


@pytest.fixture
def another_cluster() -> Iterator[None]:
    """Someone else's cluster on this machine, at the port that Dask schedulers want."""
    with socket.socket() as taken:
        with suppress(OSError):
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        yield


@pytest.mark.usefixtures("another_cluster")
@pytest.mark.parametrize("kind", ["processes", "dask", "ray"])
def test_batch_is_sent_by_configured_task_runner(kind, start_simulator, engine_of, chat_file):
    simulator = start_simulator(latency_s=0.2)
    services = engine_of(simulator, task_runner=kind)

    state = run(services, chat_file(TOTAL))

    check_output(services, state.result())
    assert simulator.counters()["received"] == TOTAL
    assert services.started_dispatcher is None or services.dispatcher.metrics.outcomes.total() == 0


@pytest.fixture
def cluster() -> Iterator[Callable[[int], LocalCluster]]:
    """Start a cluster at that port, whose workers have the environment of that moment."""
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(LocalCluster(scheduler_port=port, **options))


def test_batch_continues_after_dask_worker_is_killed(start_simulator, engine_of, chat_file, cluster):
    simulator = start_simulator(latency_s=0.2)
    (port,) = free_ports(1)
    services = engine_of(simulator, task_runner="dask", task_runner_address=f"tcp://127.0.0.1:{port}")
    cluster(port)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(run, services, chat_file(TOTAL))
        while simulator.counters()["received"] < TOTAL / 3:
            assert not ending.done()
            time.sleep(0.02)
        with Client(f"tcp://127.0.0.1:{port}", set_as_default=False) as client:
            victim = min(client.run(os.getpid).values())
        os.kill(victim, signal.SIGKILL)

        check_output(services, ending.result().result())
    assert simulator.counters()["received"] <= TOTAL + 16 + 16 * (0.2 / 0.2 + 2)


def test_unreachable_cluster_is_reported_before_sending(start_simulator, engine_of, chat_file):
    simulator = start_simulator()
    services = engine_of(simulator, task_runner="dask", task_runner_address="tcp://127.0.0.1:9")

    with pytest.raises(InvalidInput, match=r"tcp://127\.0\.0\.1:9.*is it running"):
        run(services, chat_file(10)).result()

    assert simulator.counters()["received"] == 0

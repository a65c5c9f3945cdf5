"""Two hosts with addresses of their own: one S3, one PostgreSQL, one Prefect server on PostgreSQL for both."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from helpers.network_namespaces import HUB, Host, Relay, two_hosts
from helpers.prefect_server import BIN, is_healthy, set_up
from helpers.prefect_stack import until, write_requests
from helpers.storage_servers import Postgres, S3Server, free_ports

from batchline import Batchline
from batchline.models.settings import Settings, load_settings, to_environment
from batchline.simulate import Simulator, SimulatorOptions

TOTAL = 1_200
TIMEOUT_S = 240.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


class HostsSetup(NamedTuple):
    """Two hosts, each with a model server of its own, and what a client on this machine needs."""

    api: str
    settings: Settings
    hosts: tuple[Host, Host]
    simulators: tuple[Simulator, Simulator]
    environments: tuple[dict[str, str], dict[str, str]]

    def received(self) -> tuple[int, int]:
        first, second = (start_simulator.counters()["received"] for start_simulator in self.simulators)
        return first, second


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, postgres: Postgres
) -> Iterator[HostsSetup]:
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as exit_stack:
        try:
            hosts = exit_stack.enter_context(two_hosts(folder))
        except (OSError, subprocess.CalledProcessError) as refusal:
            pytest.skip(f"no network namespaces can be made here: {refusal}")
        simulators = tuple(
            exit_stack.enter_context(Simulator(SimulatorOptions(latency_s=0.2, host=HUB))) for _ in hosts
        )
        for port in (postgres.port, urlsplit(s3_server.url).port):
            exit_stack.enter_context(Relay(port))
        records, orchestration = postgres.create(), postgres.create()
        (port,) = free_ports(1)
        api = f"http://{HUB}:{port}/api"
        shared = {
            "PREFECT_API_URL": api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        }
        settings = s3_server.settings(
            database_url=postgres.url(records), lease_s=5.0, flush_interval_s=0.2, max_in_flight=16
        )
        seen_there = {name: text.replace("127.0.0.1", HUB) for name, text in to_environment(settings).items()}
        environments = tuple(
            {
                **shared,
                **seen_there,
                "PREFECT_HOME": str(folder / host.name),
                "BATCHLINE_HOME": str(folder / f"{host.name}-home"),
                "OPENAI_BASE_URL": start_simulator.base_url,
            }
            for host, start_simulator in zip(hosts, simulators, strict=True)
        )
        here = {**os.environ, **shared, **to_environment(settings), "PREFECT_HOME": str(folder / "prefect")}
        here["PREFECT_API_DATABASE_CONNECTION_URL"] = postgres.url(orchestration).replace(
            "postgresql:", "postgresql+asyncpg:"
        )
        subprocess.run([BIN / "batchline", "db", "upgrade"], env=here, check=True, capture_output=True)
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [BIN / "prefect", "server", "start", "--host", HUB, "--port", str(port), "--no-ui"],
                env=here,
                stdout=log,
                stderr=log,
            )
        exit_stack.callback(server.wait)
        exit_stack.callback(server.kill)
        until(lambda: is_healthy(api))
        set_up(here)
        yield HostsSetup(api, settings, hosts, simulators, environments)


@pytest.fixture
def client(stack: HostsSetup) -> Iterator[Batchline]:
    for start_simulator in stack.simulators:
        start_simulator.reset()
    fields = {name: getattr(stack.settings, name) for name in stack.settings.model_fields_set}
    with Batchline(load_settings(**fields)) as opened:
        yield opened


def upload(client: Batchline, path: Path) -> str:
    return client.files.create(file=write_requests(path, TOTAL)).id


def check_whole(client: Batchline, batch_id: str) -> None:
    ended = client.batches.wait(batch_id, timeout_s=TIMEOUT_S)
    assert (ended.status, ended.request_counts.completed) == ("completed", TOTAL)
    lines = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(TOTAL)]


def test_batches_of_dead_host_are_continued_by_other_host(stack, client, tmp_path):
    for host, environment in zip(stack.hosts, stack.environments, strict=True):
        host.start(
            BIN / "prefect", "worker", "start", "--pool", "batchline", "--limit", "1", environment=environment
        )
    deployment = httpx.get(f"{stack.api}/deployments/name/process-batch/process-batch", timeout=30).json()["id"]
    for number in range(2):
        file_id = upload(client, tmp_path / f"jobs-{number}.jsonl")
        body = {"parameters": {"input_file_id": file_id}}
        answer = httpx.post(f"{stack.api}/deployments/{deployment}/create_flow_run", json=body, timeout=30)
        answer.raise_for_status()
    until(lambda: min(stack.received()) > 100, timeout_s=TIMEOUT_S)
    first, second = stack.hosts

    first.kill()

    batches = list(client.batches.list())
    assert len(batches) == 2
    for batch in batches:
        check_whole(client, batch.id)
    assert sum(stack.received()) <= 2 * TOTAL + (16 + 16 * (0.2 / 0.2 + 2))
    second.kill()


def test_batch_is_sent_by_dask_workers_of_both_hosts(stack, client, tmp_path):
    (port,) = free_ports(1)
    scheduler_address = f"tcp://{HUB}:{port}"
    scheduler = subprocess.Popen(
        [BIN / "dask", "scheduler", "--host", HUB, "--port", str(port), "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for host, environment in zip(stack.hosts, stack.environments, strict=True):
            revive(host)
            host.start(
                *(BIN / "dask", "worker", scheduler_address, "--host", host.address, "--nthreads", "2"),
                *("--no-dashboard", "--no-nanny", "--memory-limit", "0"),
                environment=environment,
            )
        path = tmp_path / "together.jsonl"
        upload(client, path)
        chosen = {
            "BATCHLINE_TASK_RUNNER": "dask",
            "BATCHLINE_TASK_RUNNER_ADDRESS": scheduler_address,
            "BATCHLINE_PROCESSES": "2",
            "BATCHLINE_CHUNK_REQUESTS": "100",
        }
        run = stack.hosts[0].start(BIN / "batchline", "run", path, environment={**stack.environments[0], **chosen})

        assert run.wait(TIMEOUT_S) == 0, stack.hosts[0].log.read_text()[-3_000:]

        (batch,) = client.batches.list(search="together.jsonl")
        check_whole(client, batch.id)
        assert min(stack.received()) >= TOTAL / 4
        assert sum(stack.received()) == TOTAL
    finally:
        scheduler.kill()
        scheduler.wait()


def revive(host: Host) -> None:
    """Put a host that died back on the network."""
    subprocess.run(["ip", "-n", host.name, "link", "set", "eth0", "up"], check=True)

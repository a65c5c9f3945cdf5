"""What happens when processes die, on a real Prefect server with a worker, our deployments and our automations."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from real_servers import free_ports

from batchline import Batchline
from batchline.models.settings import load_settings
from batchline.simulate import Simulator, SimulatorOptions

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TOTAL = 2_000
PATIENCE_S = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Site(NamedTuple):
    """A Prefect server with our deployments, and everything that its workers are told by their environment."""

    api: str
    environment: dict[str, str]
    inbox: Path
    simulator: Simulator

    def worker(self) -> subprocess.Popen[bytes]:
        command = [str(BIN / "prefect"), "worker", "start", "--pool", "batchline"]
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.inbox.parent,
            start_new_session=True,
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = httpx.request(method, f"{self.api}{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def start(self, **parameters: str) -> str:
        deployment = self.call("GET", "/deployments/name/process-batch/process-batch")["id"]
        run = self.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs of process-batch by id, the oldest first."""
        wanted = {"flows": {"name": {"any_": ["process-batch"]}}, "sort": "START_TIME_ASC"}
        return {run["id"]: run for run in self.call("POST", "/flow_runs/filter", wanted)}

    def client(self) -> Batchline:
        return Batchline(load_settings(home=self.environment["BATCHLINE_HOME"], base_url=self.simulator.base_url))


def until(condition: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> Any:
    give_up_at = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.2)
    return found


def is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that was set up by the documented commands."""
    home, (free_port,) = tmp_path_factory.mktemp("site"), free_ports(1)
    api = f"http://127.0.0.1:{free_port}/api"
    (home / "inbox").mkdir()
    with Simulator(SimulatorOptions(latency_s=0.1)) as simulator:
        environment = {
            **os.environ,
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            "BATCHLINE_HOME": str(home / "batchline"),
            "BATCHLINE_SOURCE_ROOTS": json.dumps([str(home / "inbox")]),
            "BATCHLINE_LEASE_S": "5",
            "BATCHLINE_FLUSH_INTERVAL_S": "0.2",
            "BATCHLINE_MAX_IN_FLIGHT": "16",
            "OPENAI_BASE_URL": simulator.base_url,
        }
        server = subprocess.Popen(
            [str(BIN / "prefect"), "server", "start", "--port", str(free_port)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until(lambda: is_up(f"{api}/health"))
            for command in (
                ["batchline", "prefect", "setup", "--crash-after", "45"],
                ["prefect", "deploy", "--all", "--no-prompt"],
            ):
                done = subprocess.run(
                    [str(BIN / command[0]), *command[1:]],
                    env=environment,
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stdout + done.stderr
            yield Site(api, environment, home / "inbox", simulator)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture
def worker(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    process = site.worker()
    yield process
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, without a chance to clean up."""
    for each in [*children_of(process.pid), process.pid]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [each for child in map(int, found) for each in [*children_of(child), child]]


def flow_process(worker: subprocess.Popen[bytes]) -> int:
    """The process in which the worker runs a flow."""

    def found() -> int | None:
        for pid in children_of(worker.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"prefect.engine" in command:
                return pid
        return None

    return int(until(found))


def started(site: Site, name: str) -> str:
    """Start a batch of a new file as a run of the deployment, and return that run once requests are answered."""
    site.simulator.reset()
    path = site.inbox / name
    with path.open("w") as file:
        for number in range(TOTAL):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{name} {number}"}]}
            request = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")
    run = site.start(input_uri=str(path))
    until(lambda: site.simulator.counters()["received"] > 200)
    return run


def check_ended(site: Site, first_run: str, name: str) -> None:
    """Wait for the batch to end in another run; each request has one line then, and few were sent twice."""
    with site.client() as client:
        (batch,) = client.batches.list(search=name)
        ended = client.batches.wait(batch.id, timeout_s=PATIENCE_S)
        lines = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "completed"
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(TOTAL)]
    assert site.simulator.counters()["received"] < TOTAL + 300
    runs = until(
        lambda: [run for run in site.runs().values() if run["state_type"] == "COMPLETED" and name in run["name"]]
    )
    assert runs[-1]["parameters"]["crashed_run"].endswith(first_run)
    assert site.runs()[first_run]["state_type"] == "CRASHED"


def test_a_run_that_was_killed_under_a_living_worker_is_gone_on_with(site, worker):
    run = started(site, "killed.jsonl")

    os.kill(flow_process(worker), signal.SIGKILL)

    check_ended(site, run, "killed.jsonl")


def test_a_run_whose_worker_died_with_it_is_gone_on_with_by_the_next(site, worker):
    run = started(site, "orphaned.jsonl")
    time.sleep(2)  # a heartbeat has been sent

    kill(worker)

    successor = site.worker()
    try:
        check_ended(site, run, "orphaned.jsonl")
    finally:
        kill(successor)


def test_a_run_that_is_cancelled_in_prefect_ends_its_batch_with_what_was_answered(site, worker):
    run = started(site, "cancelled.jsonl")

    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    site.call("POST", f"/flow_runs/{run}/set_state", state)

    with site.client() as client:
        (batch,) = client.batches.list(search="cancelled.jsonl")
        ended = client.batches.wait(batch.id, timeout_s=PATIENCE_S)
        answered = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "cancelled"
    assert len(answered) == ended.request_counts.completed > 0
    assert ended.request_counts.completed + ended.request_counts.failed == TOTAL
    until(lambda: site.runs()[run]["state_type"] == "CANCELLED")

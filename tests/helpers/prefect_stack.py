"""A Prefect server with our deployments and automations, and workers for it, each in a process of its own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from batchline import Batchline
from batchline.models.settings import load_settings
from batchline.simulate import Simulator, SimulatorOptions
from helpers import polling
from helpers.prefect_server import BIN, ROOT, Prefect, start_prefect
from helpers.shared_servers import prefect_home

TIMEOUT_S = 240.0


class PrefectStack(NamedTuple):
    """A Prefect server with our deployments, and everything that its workers are told by their environment."""

    api: str
    environment: dict[str, str]
    inbox: Path
    simulator: Simulator
    servers: list[Prefect]
    """Prefect's server, and those before it on the same home and port."""

    def restart(self) -> None:
        """Kill Prefect's server and start it anew."""
        self.servers[-1].stop()
        self.servers.append(start_prefect(Path(self.environment["PREFECT_HOME"]), port=urlsplit(self.api).port))

    @property
    def log(self) -> Path:
        """The log of the workers."""
        return self.inbox.parent / "workers.log"

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start_process("prefect", "worker", "start", "--pool", "batchline")

    def start_process(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=self.inbox.parent,
                start_new_session=True,
            )

    def run_command(self, *command: str) -> str:
        """Run the command, check that it succeeds, and return its output."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return call_prefect(self.api, method, path, body)

    def start(self, **parameters: Any) -> str:
        deployment = self.call("GET", "/deployments/name/process-batch/process-batch")["id"]
        run = self.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs of process-batch by id, the oldest first."""
        wanted = {"flows": {"name": {"any_": ["process-batch"]}}, "sort": "START_TIME_ASC"}
        return {run["id"]: run for run in self.call("POST", "/flow_runs/filter", wanted)}

    def artifacts(self, run_id: str) -> list[dict[str, Any]]:
        """The artifacts of that flow run."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return list(self.call("POST", "/artifacts/filter", wanted))

    def client(self) -> Batchline:
        return Batchline(load_settings(home=self.environment["BATCHLINE_HOME"], base_url=self.simulator.base_url))


def call_prefect(api: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return what Prefect's server answers; one that is busy is asked again."""
    for _ in range(6):
        answer = httpx.request(method, f"{api}{path}", json=body, timeout=120, trust_env=False)
        if answer.status_code != 503:  # SQLite is locked while runs write as well
            break
        time.sleep(1)
    return answer.raise_for_status().json()


def until(condition: Callable[[], Any], *, timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until the condition is true, polling rarely: a polled server takes CPU from what is awaited."""
    return polling.until(condition, timeout_s, max_pause_s=0.5)


def open_prefect_stack(home: Path, *, pages: bool = False, **changes: str) -> Iterator[PrefectStack]:
    """A server that was set up by the documented commands; with its pages for people if they are wanted.

    `changes` are variables for its workers.
    """
    (home / "inbox").mkdir()
    prefect = prefect_home(home / "prefect", deployed=True)
    servers = [start_prefect(prefect, pages=pages)]
    with Simulator(SimulatorOptions(latency_s=0.1)) as simulator:
        environment = {
            **os.environ,
            "PREFECT_API_URL": servers[0].url,
            "PREFECT_HOME": str(prefect),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            "BATCHLINE_HOME": str(home / "batchline"),
            "BATCHLINE_SOURCE_ROOTS": json.dumps([str(home / "inbox")]),
            "BATCHLINE_SOURCE_STILL_S": "0",
            "BATCHLINE_LEASE_S": "5",
            "BATCHLINE_FLUSH_INTERVAL_S": "0.2",
            "BATCHLINE_MAX_IN_FLIGHT": "16",
            "BATCHLINE_SHARE_BUDGETS": "false",  # the share of a run that was killed is missing for a minute
            "OPENAI_BASE_URL": simulator.base_url,
            **changes,
        }
        try:
            yield PrefectStack(servers[0].url, environment, home / "inbox", simulator, servers)
        finally:
            servers[-1].stop()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, without a chance to clean up.

    One that was waited for is left alone: its id may be another process's by now.
    """
    if process.returncode is not None:
        return
    for each in [*children_of(process.pid), process.pid]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [each for child in map(int, found) for each in [*children_of(child), child]]


def write_requests(path: Path, count: int, *, prompt: str = "") -> Path:
    """A file of so many chat requests."""
    with path.open("w") as file:
        for number in range(count):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{path.name} {number} {prompt}"}]}
            request = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")
    return path

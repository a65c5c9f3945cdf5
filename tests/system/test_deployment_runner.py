"""`batchline serve` whose batches are runs of the deployment, on a real Prefect server with a worker."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from helpers.api_server import ENDPOINT, wait_for_end
from helpers.command_line import RunningCommand as Command
from helpers.command_line import run_batchline
from helpers.polling import until
from helpers.prefect_server import BIN, Prefect, is_healthy, start_prefect
from helpers.prefect_stack import call_prefect
from helpers.processes import kill_group
from helpers.request_files import write_requests
from helpers.sample_records import make_batch
from helpers.shared_servers import prefect_home
from helpers.storage_servers import free_ports
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled

from batchline import Batchline
from batchline.flows.process_batch import process_batch
from batchline.models.settings import load_settings
from batchline.models.status import BatchStatus
from batchline.orchestration.run_needed import needs_run
from batchline.simulate import Simulator

SERVER_S = 120
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


class Deployed:
    """A Prefect server with our deployments that stops and starts again, and what commands are to know of it."""

    def __init__(self, home: Path, upstream: Simulator) -> None:
        (self.port,) = free_ports(1)
        self.home = prefect_home(home / "prefect", deployed=True)
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            "BATCHLINE_HOME": str(home / "batchline"),
            "BATCHLINE_SERVE_VIA": "deployment",
            "OPENAI_BASE_URL": upstream.base_url,
        }
        self._server: Prefect | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_server(self) -> None:
        self._server = start_prefect(self.home, port=self.port)

    def stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()
            until(lambda: not is_healthy(self.api), SERVER_S)
            self._server = None

    def start_worker(self) -> None:
        command = [str(BIN / "prefect"), "worker", "start", "--pool", "batchline"]
        self._workers.append(subprocess.Popen(command, env=os.environ | self.environment, **QUIET))  # type: ignore[call-overload]

    def runs_of(self, batch_id: str) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"name": {"like_": batch_id}}, "sort": "START_TIME_ASC"}
        return list(call_prefect(self.api, "POST", "/flow_runs/filter", wanted))

    def stop(self) -> None:
        for worker in self._workers:
            kill_group(worker)
        self.stop_server()


class RunnerSetup(NamedTuple):
    """A server of ours beside Prefect's, the simulator, and a client."""

    prefect: Deployed
    simulator: Simulator
    server: Command
    openai: openai.OpenAI
    home: Path

    def create(self, name: str, count: int = 3, **options: Any) -> openai.types.Batch:
        path = write_requests(self.home / f"{name}.jsonl", count, **options)
        file = self.openai.files.create(file=path, purpose="batch")
        return self.openai.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerSetup]:
    home = tmp_path_factory.mktemp("site")
    with Simulator() as simulator:
        prefect = Deployed(home, simulator)
        server = None
        try:
            prefect.start_server()
            prefect.start_worker()
            server = Command("serve", "--port", "0", folder=home, **prefect.environment)
            server.wait_for("serving at ")
            url = server.err.partition("serving at ")[2].split()[0]
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                yield RunnerSetup(prefect, simulator, server, client, home)
        finally:
            if server is not None:
                server.kill(signal.SIGKILL)
                server.wait()
            prefect.stop()


def test_batch_and_its_retry_are_deployment_runs(stack):
    prompt = lambda number: f"{number} simulate:status=400" if number == 1 else f"{number}?"  # noqa: E731
    batch = stack.create("failing", prompt=prompt)

    over = wait_for_end(stack.openai, batch.id, timeout_s=SERVER_S)

    assert (batch.status, over.status) == ("validating", "completed")
    assert (over.request_counts.completed, over.request_counts.failed) == (2, 1)
    assert json.loads(over.to_json())["dwext"] == {"source": "api"}
    (run,) = stack.prefect.runs_of(batch.id)
    assert run["idempotency_key"].startswith(batch.id)
    assert run["deployment_id"]

    retried = stack.openai.post(f"/batches/{batch.id}/retry", cast_to=openai.types.Batch)
    assert retried.status == "in_progress"
    until(lambda: len(stack.prefect.runs_of(batch.id)) == 2, SERVER_S)
    assert wait_for_end(stack.openai, batch.id, timeout_s=SERVER_S).request_counts.failed == 1
    assert len({run["id"] for run in stack.prefect.runs_of(batch.id)}) == 2


def test_batch_created_without_prefect_starts_once_it_returns(stack):
    stack.prefect.stop_server()

    batch = stack.create("patient")
    stack.server.wait_for("Prefect failed")
    assert stack.openai.batches.retrieve(batch.id).status == "validating"

    stack.prefect.start_server()
    assert wait_for_end(stack.openai, batch.id, timeout_s=SERVER_S).status == "completed"
    assert len(stack.prefect.runs_of(batch.id)) == 1


def test_batch_cancelled_before_worker_starts_stays_cancelled(stack):
    received = stack.simulator.counters()["received"]
    batch = stack.create("cancelled")
    until(lambda: stack.prefect.runs_of(batch.id), SERVER_S)
    stack.openai.batches.cancel(batch.id)

    until(lambda: [run["state_type"] for run in stack.prefect.runs_of(batch.id)] == ["CANCELLED"], SERVER_S)

    assert stack.openai.batches.retrieve(batch.id).status == "cancelled"
    assert stack.simulator.counters()["received"] == received


def test_deployment_runs_continue_after_server_stops(stack):
    batch = stack.create("going on", 5)
    until(lambda: stack.prefect.runs_of(batch.id), SERVER_S)

    stack.server.kill(signal.SIGTERM)

    assert stack.server.wait().status == 0
    settings = load_settings(home=stack.home / "batchline", base_url=stack.simulator.base_url)
    with Batchline(settings) as client:
        assert client.batches.wait(batch.id, timeout_s=SERVER_S).request_counts.completed == 5


@pytest.mark.parametrize(
    ("state", "batch", "later_s", "expected"),
    [
        (None, {}, 0, True),
        (Scheduled(), {}, 0, False),
        (Scheduled(), {}, 3_600, False),
        (Pending(), {}, 0, False),
        (Pending(), {}, 3_600, True),
        (Running(), {}, 0, False),
        (Running(), {}, 3_600, True),
        (Running(), {"lease_owner": "one that is dead", "lease_at": 1.0}, 0, True),
        (Completed(), {}, 0, True),
        (Crashed(), {}, 0, True),
        (Cancelled(), {}, 0, False),
        (Cancelled(), {"status": BatchStatus.CANCELLING}, 0, True),
        (Cancelled(), {}, 100_000, True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_run_is_needed_only_if_no_other_will_run_batch(state, batch, later_s, expected, stack):
    with temporary_settings({PREFECT_API_URL: stack.prefect.api}):
        run_id = uuid.uuid4()
        if state is not None:
            with get_client(sync_client=True) as client:
                run_id = client.create_flow_run(process_batch, state=state).id
        now = int(time.time())
        record = make_batch(last_flow_run_id=str(run_id), created_at=now, expires_at=now + 86_400, **batch)

        assert needs_run(record, now=now + later_s) is expected


def test_serve_by_deployment_without_prefect_url_fails():
    ended = run_batchline(
        "serve", "--port", "0", BATCHLINE_SERVE_VIA="deployment", OPENAI_BASE_URL="http://127.0.0.1:9/v1"
    )

    assert (ended.status, ended.out) == (2, "")
    assert "PREFECT_API_URL" in ended.err

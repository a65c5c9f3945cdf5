"""What happens when processes die, on a real Prefect server with a worker, our deployments and our automations."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_site import PATIENCE_S, Site, children_of, kill, until, write_requests

TOTAL = 2_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def worker(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    process = site.worker()
    yield process
    kill(process)


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
    path = write_requests(site.inbox / name, TOTAL)
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
    counts = ended.request_counts
    message = f"cancelled: {counts.completed:,} ok, {counts.failed:,} failed (batch_cancelled {counts.failed:,})"
    until(lambda: states_of(site, run)[-2:] == ["Flow run was cancelled successfully.", message])


def states_of(site: Site, run: str) -> list[str | None]:
    """The messages of the run's states, the oldest first."""
    return [state["message"] for state in site.call("GET", f"/flow_run_states/?flow_run_id={run}")]


def test_a_run_that_was_killed_under_batchline_prefect_serve_is_gone_on_with(site):
    served = site.started("batchline", "prefect", "serve", "--limit", "2")
    try:
        until(lambda: b"Ctrl-C ends it" in site.log.read_bytes())
        run = started(site, "served.jsonl")

        os.kill(flow_process(served), signal.SIGKILL)

        check_ended(site, run, "served.jsonl")
    finally:
        kill(served)

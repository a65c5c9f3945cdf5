"""Recovery from killed processes, on a real Prefect server with a worker, our deployments and automations."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.prefect_stack import TIMEOUT_S, PrefectStack, children_of, kill_tree, until, write_requests

from batchline import Batchline
from batchline.models.batches import BatchResponse

TOTAL = 2_400

HOUSEKEEPING_S = 75.0
ROUNDS = 5

PROGRAM = """
import os, sys
os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
from prefect import tags
from batchline.flows.process_batch import process_batch
with tags("batchline"):
    process_batch(input_uri=sys.argv[1])
"""
"""The program in docs/prefect.md."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


class Workers:
    """At most one worker at a time: each process of Prefect's takes seconds to start."""

    def __init__(self, stack: PrefectStack) -> None:
        self._site = stack
        self._last: subprocess.Popen[bytes] | None = None

    def living(self) -> subprocess.Popen[bytes]:
        """The worker, or a new one where that has died."""
        if self._last is None or self._last.poll() is not None:
            self._last = self._site.worker()
        return self._last

    def end(self) -> None:
        if self._last is not None:
            kill_tree(self._last)
            self._last = None


@pytest.fixture(scope="module")
def workers(stack: PrefectStack) -> Iterator[Workers]:
    made = Workers(stack)
    yield made
    made.end()


def flow_process(worker: subprocess.Popen[bytes]) -> int:
    """The process in which the worker runs a flow."""

    def found() -> int | None:
        for pid in children_of(worker.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"prefect.engine" in command:
                return pid
        return None

    return int(until(found))


def started(stack: PrefectStack, name: str) -> str:
    """Start a batch of a new file as a run of the deployment, and return that run once requests are answered."""
    stack.simulator.reset()
    path = write_requests(stack.inbox / name, TOTAL)
    run = stack.start(input_uri=str(path))
    until(lambda: stack.simulator.counters()["received"] > 200)
    return run


def check_ended(stack: PrefectStack, first_run: str, name: str) -> None:
    """Wait for the batch to end in another run; each request has one line then, and few were sent twice."""
    last = check_whole(stack, name)
    assert stack.simulator.counters()["received"] < TOTAL + 300
    assert crash_before(last) == first_run
    assert stack.runs()[first_run]["state_type"] == "CRASHED"


def check_whole(stack: PrefectStack, name: str) -> dict[str, Any]:
    """Wait for the batch to end with one line for each request; the run that brought it there."""
    with stack.client() as client:
        (batch,) = client.batches.list(search=name)
        ended = until_over(stack, client, batch.id)
        lines = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "completed"
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(TOTAL)]
    runs = until(
        lambda: [run for run in stack.runs().values() if run["state_type"] == "COMPLETED" and name in run["name"]]
    )
    return runs[-1]


def until_over(stack: PrefectStack, client: Batchline, batch_id: str) -> BatchResponse:
    """Wait for the batch to end; housekeeping, which runs more often here, finds a crash that was not heard of."""
    for _ in range(ROUNDS):
        try:
            return client.batches.wait(batch_id, timeout_s=HOUSEKEEPING_S)
        except TimeoutError:
            deployment = stack.call("GET", "/deployments/name/housekeeping/housekeeping")["id"]
            stack.call("POST", f"/deployments/{deployment}/create_flow_run", {})
    return client.batches.wait(batch_id, timeout_s=HOUSEKEEPING_S)


def crash_before(run: dict[str, Any]) -> str | None:
    """The run that crashed and had this one started; None if housekeeping started it for its batch."""
    crashed = run["parameters"].get("crashed_run")
    return str(crashed).rpartition(".")[2] if crashed else None


def check_line(stack: PrefectStack, first_run: str, name: str) -> None:
    """Check a batch that may have crashed more than once: the crashes lead back to the first run."""
    run = check_whole(stack, name)
    while (before := crash_before(run)) not in (first_run, None):
        run = stack.runs()[str(before)]
        assert run["state_type"] == "CRASHED"
    assert before is None or stack.runs()[first_run]["state_type"] == "CRASHED"


def test_killed_flow_run_is_continued_under_live_worker(stack, workers):
    worker = workers.living()
    run = started(stack, "killed.jsonl")

    os.kill(flow_process(worker), signal.SIGKILL)

    check_ended(stack, run, "killed.jsonl")


def killed_with_its_worker(stack: PrefectStack, workers: Workers, name: str) -> str:
    worker = workers.living()
    run = started(stack, name)
    time.sleep(2)  # a heartbeat has been sent
    kill_tree(worker)
    return run


def ended_with_its_worker(stack: PrefectStack, workers: Workers, name: str) -> str:
    """The worker is told to end by SIGTERM, which gives its flows no chance."""
    worker = workers.living()
    run = started(stack, name)
    flow = flow_process(worker)
    time.sleep(2)
    worker.send_signal(signal.SIGTERM)
    until(lambda: not Path(f"/proc/{flow}").exists())
    kill_tree(worker)
    return run


def killed_as_a_program(stack: PrefectStack, _: Workers, name: str) -> str:
    """A program of somebody's runs the flow itself."""
    stack.simulator.reset()
    path = write_requests(stack.inbox / name, TOTAL)
    program = stack.start_process("python", "-c", PROGRAM, str(path))
    until(lambda: stack.simulator.counters()["received"] > 200)
    (run,) = [run["id"] for run in stack.runs().values() if name in run["name"]]
    time.sleep(2)
    kill_tree(program)
    return str(run)


def test_flow_runs_killed_with_their_processes_are_continued_by_next_worker(stack, workers):
    received, died = 0, {}
    for die in (ended_with_its_worker, killed_with_its_worker, killed_as_a_program):
        name = f"{die.__name__}.jsonl"
        died[name] = die(stack, workers, name)
        received += stack.simulator.counters()["received"]
    stack.simulator.reset()

    workers.living()

    for name, run in died.items():
        check_line(stack, run, name)
    assert received + stack.simulator.counters()["received"] < 3 * (TOTAL + 300)


def test_flow_run_cancelled_in_prefect_cancels_batch_and_keeps_answers(stack, workers):
    workers.living()
    run = started(stack, "cancelled.jsonl")

    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.call("POST", f"/flow_runs/{run}/set_state", state)

    with stack.client() as client:
        (batch,) = client.batches.list(search="cancelled.jsonl")
        ended = client.batches.wait(batch.id, timeout_s=TIMEOUT_S)
        answered = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "cancelled"
    assert len(answered) == ended.request_counts.completed > 0
    assert ended.request_counts.failed == 0
    done, rest = ended.request_counts.completed, TOTAL - ended.request_counts.completed
    message = f"cancelled: {done:,} ok, 0 failed, {rest:,} not answered: batch_cancelled {rest:,}"
    until(lambda: stack.runs()[run]["state"]["message"] == "Flow run was cancelled successfully.")
    assert message in {artifact["description"] for artifact in stack.artifacts(run)}


def test_flow_run_killed_under_prefect_serve_is_continued(stack, workers):
    workers.end()
    served = stack.start_process("batchline", "prefect", "serve", "--limit", "2")
    try:
        until(lambda: b"Ctrl-C stops it" in stack.log.read_bytes())
        run = started(stack, "served.jsonl")

        os.kill(flow_process(served), signal.SIGKILL)

        check_ended(stack, run, "served.jsonl")
    finally:
        kill_tree(served)

"""Deployments as a server stores them: by modules and without a checkout's paths; served or given to workers."""

import json
import os
import signal
from typing import Any

import pytest
from helpers.prefect_server import ROOT
from helpers.prefect_stack import PrefectStack, until, write_requests

pytestmark = pytest.mark.system

CALLER = """
import sys
from prefect.deployments import run_deployment
run = run_deployment("process-batch/process-batch", parameters={"input_uri": sys.argv[1]}, timeout=240)
batch = run.state.result()
print(run.labels["batchline.batch_id"], batch.id, batch.request_counts.completed)
"""

NAMES = ("process-batch", "sync-source", "housekeeping")


def stored(stack: PrefectStack, name: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.call("GET", f"/deployments/name/{name}/{name}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_deployment_contains_no_checkout_path(stack, name):
    deployment = stored(stack, name)

    assert str(ROOT) not in json.dumps(deployment)
    assert not deployment["pull_steps"]
    assert deployment["entrypoint"].startswith("batchline.flows.")


def test_serve_takes_deployments_from_workers_and_deploy_returns_them(stack):
    before = {name: stored(stack, name) for name in NAMES}
    assert {each["work_pool_name"] for each in before.values()} == {"batchline"}

    serving = stack.start_process("batchline", "prefect", "serve")
    until(lambda: [stored(stack, name)["work_pool_name"] for name in NAMES] == [None] * 3)
    run = stack.start(input_uri=str(write_requests(stack.inbox / "served.jsonl", 3)))
    ended = until(lambda: (found := stack.runs()[run])["end_time"] and found)
    os.kill(serving.pid, signal.SIGTERM)
    serving.wait(60)

    assert ended["state"]["message"] == "completed: 3 ok, 0 failed"
    assert ended["work_pool_name"] is None

    stack.run_command("prefect", "deploy", "--all", "--no-prompt")
    kept = ("work_pool_name", "work_queue_name", "job_variables", "entrypoint", "pull_steps", "id")
    for name in NAMES:
        assert {key: stored(stack, name)[key] for key in kept} == {key: before[name][key] for key in kept}


def test_deployment_caller_receives_batch_and_its_id(stack_with_worker):
    file = write_requests(stack_with_worker.inbox / "called.jsonl", 3)

    printed = stack_with_worker.run_command("python", "-c", CALLER, str(file))

    with stack_with_worker.client() as client:
        (batch,) = client.batches.list(search=file.name)
    assert printed.split() == [batch.id, batch.id, "3"]

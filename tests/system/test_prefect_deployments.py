"""Deployments as a server stores them: by modules and without a checkout's paths; served or given to workers."""

import json
import os
import signal
from typing import Any

import pytest
from helpers.prefect_server import ROOT
from helpers.prefect_stack import Site, until, write_requests

pytestmark = pytest.mark.system

CALLER = """
import sys
from prefect.deployments import run_deployment
run = run_deployment("process-batch/process-batch", parameters={"input_uri": sys.argv[1]}, timeout=240)
batch = run.state.result()
print(run.labels["batchline.batch_id"], batch.id, batch.request_counts.completed)
"""

NAMES = ("process-batch", "sync-source", "housekeeping")


def stored(site: Site, name: str) -> dict[str, Any]:
    found: dict[str, Any] = site.call("GET", f"/deployments/name/{name}/{name}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_deployment_contains_no_checkout_path(site: Site, name: str):
    deployment = stored(site, name)

    assert str(ROOT) not in json.dumps(deployment)
    assert not deployment["pull_steps"]
    assert deployment["entrypoint"].startswith("batchline.flows.")


def test_serve_takes_deployments_from_workers_and_deploy_returns_them(site: Site):
    before = {name: stored(site, name) for name in NAMES}
    assert {each["work_pool_name"] for each in before.values()} == {"batchline"}

    serving = site.started("batchline", "prefect", "serve")
    until(lambda: [stored(site, name)["work_pool_name"] for name in NAMES] == [None] * 3)
    run = site.start(input_uri=str(write_requests(site.inbox / "served.jsonl", 3)))
    ended = until(lambda: (found := site.runs()[run])["end_time"] and found)
    os.kill(serving.pid, signal.SIGTERM)
    serving.wait(60)

    assert ended["state"]["message"] == "completed: 3 ok, 0 failed"
    assert ended["work_pool_name"] is None

    site.do("prefect", "deploy", "--all", "--no-prompt")
    kept = ("work_pool_name", "work_queue_name", "job_variables", "entrypoint", "pull_steps", "id")
    for name in NAMES:
        assert {key: stored(site, name)[key] for key in kept} == {key: before[name][key] for key in kept}


def test_deployment_caller_receives_batch_and_its_id(worked_site: Site):
    file = write_requests(worked_site.inbox / "called.jsonl", 3)

    printed = worked_site.do("python", "-c", CALLER, str(file))

    with worked_site.client() as client:
        (batch,) = client.batches.list(search=file.name)
    assert printed.split() == [batch.id, batch.id, "3"]

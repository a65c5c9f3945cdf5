"""Prefect's server is killed and started anew, as the documented set-up has it, while a batch is sent."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from helpers.prefect_stack import PrefectStack, kill_tree, open_prefect_stack, until, write_requests

TOTAL = 1_500

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectStack]:
    yield from open_prefect_stack(tmp_path_factory.mktemp("site"), BATCHLINE_SHARE_BUDGETS="true")


@pytest.fixture(scope="module", autouse=True)
def worker(stack: PrefectStack) -> Iterator[subprocess.Popen[bytes]]:
    process = stack.worker()
    yield process
    kill_tree(process)


def taken(stack: PrefectStack) -> dict[str, int]:
    """The slots that are taken of the upstream's limits, those that lapse within two minutes left out."""
    limits = stack.call("POST", "/v2/concurrency_limits/filter", {"limit": 200})
    return {
        limit["name"]: limit["active_slots"]
        for limit in limits
        if limit["name"].startswith("batchline-") and limit["name"].endswith(("-in-flight", "-processes"))
    }


def test_flow_run_survives_server_restart_and_is_announced_once(stack):
    run = stack.start(input_uri=str(write_requests(stack.inbox / "restarted.jsonl", TOTAL)))
    until(lambda: stack.simulator.counters()["received"] > 200)

    stack.restart()

    until(lambda: stack.call("GET", f"/flow_runs/{run}")["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert stack.call("GET", f"/flow_runs/{run}")["state"]["name"] == "Completed"
    with stack.client() as client:
        (batch,) = client.batches.list(search="restarted.jsonl")
        lines = b"".join(client.files.content(batch.output_file_id)).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(TOTAL)]
    assert stack.simulator.counters()["received"] == TOTAL
    wanted = {"event": {"name": ["batch.completed"]}, "resource": {"id": [f"batchline.batch.{batch.id}"]}}
    until(lambda: stack.call("POST", "/events/filter", {"filter": wanted})["total"] == 1)
    until(lambda: set(taken(stack).values()) == {0})

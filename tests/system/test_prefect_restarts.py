"""Prefect's server is killed and started anew, as the documented set-up has it, while a batch is sent."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from helpers.prefect_stack import Site, kill, opened_site, until, write_requests

TOTAL = 1_500

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from opened_site(tmp_path_factory.mktemp("site"), BATCHLINE_SHARE_BUDGETS="true")


@pytest.fixture(scope="module", autouse=True)
def worker(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    process = site.worker()
    yield process
    kill(process)


def taken(site: Site) -> dict[str, int]:
    """The slots that are taken of the upstream's limits, those that lapse within two minutes left out."""
    limits = site.call("POST", "/v2/concurrency_limits/filter", {"limit": 200})
    return {
        limit["name"]: limit["active_slots"]
        for limit in limits
        if limit["name"].startswith("batchline-") and limit["name"].endswith(("-in-flight", "-processes"))
    }


def test_flow_run_survives_server_restart_and_is_announced_once(site):
    run = site.start(input_uri=str(write_requests(site.inbox / "restarted.jsonl", TOTAL)))
    until(lambda: site.simulator.counters()["received"] > 200)

    site.restart()

    until(lambda: site.call("GET", f"/flow_runs/{run}")["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED"})
    assert site.call("GET", f"/flow_runs/{run}")["state"]["name"] == "Completed"
    with site.client() as client:
        (batch,) = client.batches.list(search="restarted.jsonl")
        lines = b"".join(client.files.content(batch.output_file_id)).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(TOTAL)]
    assert site.simulator.counters()["received"] == TOTAL
    wanted = {"event": {"name": ["batch.completed"]}, "resource": {"id": [f"batchline.batch.{batch.id}"]}}
    until(lambda: site.call("POST", "/events/filter", {"filter": wanted})["total"] == 1)
    until(lambda: set(taken(site).values()) == {0})

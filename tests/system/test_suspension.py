"""Suspend and Resume of a batch's flow run, counted at the upstream: nothing is sent meanwhile or paid twice."""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from helpers.prefect_pages import PrefectPages
from helpers.prefect_server import CRASH_AFTER_S
from helpers.prefect_stack import Site, children_of, kill, until, write_requests
from prefect.settings import PREFECT_API_URL, temporary_settings

from batchline.orchestration.blocks import UpstreamBlock
from batchline.simulate import Simulator, SimulatorOptions
from batchline.storage.records.store import BatchRecord

TOTAL = 2_000
LONG = 8_000
"""Requests that are sent for longer than a page takes to open."""

FIRES_WITHIN_S = 25
"""Prefect looks at its automations every few seconds, as of some seconds ago."""

STOPS_WITHIN_S = 90
"""Generous: it takes two to four seconds on an idle machine."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def worker(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    process = site.worker()
    yield process
    kill(process)


def started(site: Site, name: str, total: int = TOTAL) -> str:
    """Start a batch of a new file as a run of the deployment, and return that run once requests are answered."""
    site.simulator.reset()
    run = site.start(input_uri=str(write_requests(site.inbox / name, total)))
    until(lambda: received(site) > 100)
    return run


def received(site: Site) -> int:
    return int(site.simulator.counters()["received"])


def suspend(site: Site, run: str) -> None:
    """Return the state that the pages send when Suspend is pressed."""
    timeout = (datetime.now(UTC) + timedelta(seconds=300)).isoformat()
    details = {"pause_reschedule": True, "pause_timeout": timeout}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    answer = site.call("POST", f"/flow_runs/{run}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT", answer


def state_of(site: Site, run: str) -> str:
    return str(site.call("GET", f"/flow_runs/{run}")["state"]["name"])


def batch_of(site: Site, name: str) -> BatchRecord:
    with site.client() as client:
        (batch,) = client.batches.records(search=name)
    return batch


def check_whole(site: Site, name: str, total: int = TOTAL) -> None:
    """Wait for the batch to complete; each request has one line, and none was paid twice."""
    with site.client() as client:
        (batch,) = client.batches.list(search=name)
        ended = client.batches.wait(batch.id, timeout_s=240)
        lines = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "completed"
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(total)]
    assert received(site) == total


def test_suspended_run_sends_nothing_until_resumed_and_repeats_nothing(site, worker):
    run = started(site, "suspended.jsonl")

    suspend(site, run)

    until(lambda: not children_of(worker.pid), patience_s=STOPS_WITHIN_S)
    sent = received(site)
    assert sent < TOTAL
    time.sleep(5)
    assert (received(site), state_of(site, run)) == (sent, "Suspended")

    site.call("POST", f"/flow_runs/{run}/resume")

    check_whole(site, "suspended.jsonl")
    until(lambda: state_of(site, run) == "Completed")
    assert [each for each in site.runs().values() if "suspended.jsonl" in each["name"]] == [site.runs()[run]]


def test_run_resumed_before_old_process_stops_continues_in_one_process(site):
    with Simulator(SimulatorOptions(latency_s=10)) as slow:
        with temporary_settings({PREFECT_API_URL: site.api}):
            UpstreamBlock(base_url=slow.base_url, max_in_flight=16).save("slow", overwrite=True)
        run = site.start(input_uri=str(write_requests(site.inbox / "slow.jsonl", 32)), upstreams=["slow"])
        until(lambda: slow.counters()["received"] >= 16)

        suspend(site, run)
        site.call("POST", f"/flow_runs/{run}/resume")

        until(lambda: state_of(site, run) == "Completed")
        assert slow.counters()["received"] == 32
    assert batch_of(site, "slow.jsonl").completed == 32
    names = [state["name"] for state in site.call("GET", f"/flow_run_states/?flow_run_id={run}")]
    assert not {"Failed", "Crashed"} & set(names), names


def test_suspended_or_finished_run_is_not_reported_as_crashed(site):
    began = datetime.now(UTC).isoformat()
    run = started(site, "left.jsonl")
    suspend(site, run)
    folder = site.inbox / "empty"
    folder.mkdir()
    deployment = site.call("GET", "/deployments/name/sync-source/sync-source")["id"]
    short = site.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"uri": str(folder)}})[
        "id"
    ]
    until(lambda: state_of(site, short) == "Completed")
    sent = received(site)

    time.sleep(CRASH_AFTER_S + FIRES_WITHIN_S)

    assert (state_of(site, run), state_of(site, short)) == ("Suspended", "Completed")
    assert received(site) <= sent + 32
    wanted = {"event": {"name": ["prefect.automation.triggered"]}, "occurred": {"since": began}}
    fired = site.call("POST", "/events/filter", {"filter": wanted})["events"]
    of_runs = {event["payload"].get("triggering_labels", {}).get("prefect.resource.id") for event in fired}
    assert not {f"prefect.flow-run.{each}" for each in (run, short)} & of_runs


def test_run_crashed_after_suspension_is_not_continued(site):
    run = started(site, "crashed.jsonl")
    suspend(site, run)
    until(lambda: batch_of(site, "crashed.jsonl").lease_owner is None)
    sent = received(site)

    site.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CRASHED"}})

    follower = until(lambda: [each for each in site.runs().values() if run in str(each["parameters"])])[0]["id"]
    until(lambda: state_of(site, follower) == "Failed")
    assert received(site) == sent


def test_suspend_and_resume_on_run_page_repeat_nothing(site, worker, pages: PrefectPages):
    name = f"pressed{pages.version[1:]}.jsonl"
    run = started(site, name, LONG)

    pages.press(run, "Suspend")

    until(lambda: not children_of(worker.pid), patience_s=STOPS_WITHIN_S)
    sent = received(site)
    assert sent < LONG
    time.sleep(5)
    assert received(site) == sent

    pages.press(run, "Resume")

    check_whole(site, name, LONG)
    until(lambda: state_of(site, run) == "Completed")


def test_suspended_run_cancelled_on_page_cancels_batch_and_keeps_answers(site, pages):
    name = f"cancelled{pages.version[1:]}.jsonl"
    run = started(site, name)
    suspend(site, run)
    until(lambda: batch_of(site, name).lease_owner is None)
    sent = received(site)

    pages.press(run, "Cancel")
    deployment = site.call("GET", "/deployments/name/housekeeping/housekeeping")["id"]
    site.call("POST", f"/deployments/{deployment}/create_flow_run", {})

    until(lambda: batch_of(site, name).status == "cancelled")
    assert (batch_of(site, name).completed, received(site)) == (sent, sent)


def test_run_failed_during_suspension_continues_by_retry_on_page(site, pages):
    name = f"retried{pages.version[1:]}.jsonl"
    run = started(site, name)
    suspend(site, run)
    until(lambda: batch_of(site, name).lease_owner is None)
    failed = {"type": "FAILED", "message": "The flow was paused and never resumed."}  # as after five minutes
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": failed, "force": True})

    pages.press(run, "Retry")

    check_whole(site, name)

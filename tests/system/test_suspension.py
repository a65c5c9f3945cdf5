"""Suspend and Resume of a batch's flow run, counted at the upstream: nothing is sent meanwhile or paid twice."""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from helpers.prefect_server import CRASH_AFTER_S
from helpers.prefect_stack import PrefectStack, children_of, kill_tree, until, write_requests
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
def worker(stack: PrefectStack) -> Iterator[subprocess.Popen[bytes]]:
    process = stack.worker()
    yield process
    kill_tree(process)


def started(stack: PrefectStack, name: str, total: int = TOTAL) -> str:
    """Start a batch of a new file as a run of the deployment, and return that run once requests are answered."""
    stack.simulator.reset()
    run = stack.start(input_uri=str(write_requests(stack.inbox / name, total)))
    until(lambda: received(stack) > 100)
    return run


def received(stack: PrefectStack) -> int:
    return int(stack.simulator.counters()["received"])


def suspend(stack: PrefectStack, run: str) -> None:
    """Return the state that the pages send when Suspend is pressed."""
    timeout = (datetime.now(UTC) + timedelta(seconds=300)).isoformat()
    details = {"pause_reschedule": True, "pause_timeout": timeout}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    answer = stack.call("POST", f"/flow_runs/{run}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT", answer


def state_of(stack: PrefectStack, run: str) -> str:
    return str(stack.call("GET", f"/flow_runs/{run}")["state"]["name"])


def batch_of(stack: PrefectStack, name: str) -> BatchRecord:
    with stack.client() as client:
        (batch,) = client.batches.records(search=name)
    return batch


def check_whole(stack: PrefectStack, name: str, total: int = TOTAL) -> None:
    """Wait for the batch to complete; each request has one line, and none was paid twice."""
    with stack.client() as client:
        (batch,) = client.batches.list(search=name)
        ended = client.batches.wait(batch.id, timeout_s=240)
        lines = b"".join(client.files.content(ended.output_file_id)).splitlines()
    assert ended.status == "completed"
    assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{number}" for number in range(total)]
    assert received(stack) == total


def test_suspended_run_sends_nothing_until_resumed_and_repeats_nothing(stack, worker):
    run = started(stack, "suspended.jsonl")

    suspend(stack, run)

    until(lambda: not children_of(worker.pid), timeout_s=STOPS_WITHIN_S)
    sent = received(stack)
    assert sent < TOTAL
    time.sleep(5)
    assert (received(stack), state_of(stack, run)) == (sent, "Suspended")

    stack.call("POST", f"/flow_runs/{run}/resume")

    check_whole(stack, "suspended.jsonl")
    until(lambda: state_of(stack, run) == "Completed")
    assert [each for each in stack.runs().values() if "suspended.jsonl" in each["name"]] == [stack.runs()[run]]


def test_batch_paused_by_client_suspends_its_run_and_is_resumed_in_it(stack, worker):
    run = started(stack, "paused.jsonl")
    batch = batch_of(stack, "paused.jsonl")
    with stack.client() as client:
        client.batches.pause(batch.id, message="the price went up")

        until(lambda: state_of(stack, run) == "Suspended")
        until(lambda: not children_of(worker.pid), timeout_s=STOPS_WITHIN_S)
        state = stack.call("GET", f"/flow_runs/{run}")["state"]
        assert state["state_details"]["pause_timeout"] is None
        assert "the price went up" in state["message"]
        sent = received(stack)
        assert batch_of(stack, "paused.jsonl").completed == sent < TOTAL

        with temporary_settings({PREFECT_API_URL: stack.api}):
            assert client.batches.resume_where_it_ran(batch.id) == "flow run"
        check_whole(stack, "paused.jsonl")

    until(lambda: state_of(stack, run) == "Completed")
    assert batch_of(stack, "paused.jsonl").expires_at > batch.expires_at


def test_batch_paused_twice_suspends_its_run_twice(stack):
    run = started(stack, "twice.jsonl", LONG)
    batch = batch_of(stack, "twice.jsonl")
    with stack.client() as client, temporary_settings({PREFECT_API_URL: stack.api}):
        for _ in range(2):
            client.batches.pause(batch.id)
            until(lambda: state_of(stack, run) == "Suspended")
            sent = received(stack)
            client.batches.resume_where_it_ran(batch.id)
            until(lambda sent=sent: received(stack) > sent + 100)

    check_whole(stack, "twice.jsonl", LONG)


def test_batch_paused_again_before_its_run_has_restarted_stays_paused(stack):
    run = started(stack, "again.jsonl", LONG)
    batch = batch_of(stack, "again.jsonl")
    with stack.client() as client, temporary_settings({PREFECT_API_URL: stack.api}):
        client.batches.pause(batch.id)
        until(lambda: state_of(stack, run) == "Suspended")
        sent = received(stack)
        client.batches.resume_where_it_ran(batch.id)
        client.batches.pause(batch.id)

        until(lambda: state_of(stack, run) != "Suspended")
        until(lambda: state_of(stack, run) == "Suspended")
        assert received(stack) == sent
        client.batches.cancel(batch.id)


def test_batch_paused_before_its_first_run_is_suspended_and_not_resumed(stack):
    stack.simulator.reset()
    with stack.client() as client, temporary_settings({PREFECT_API_URL: stack.api}):
        file = client.files.create(file=write_requests(stack.inbox / "early.jsonl", 10))
        batch = client.batches.create(input_file_id=file.id, via=None)
        client.batches.pause(batch.id)
        run = stack.start(batch_id=batch.id)
        until(lambda: state_of(stack, run) == "Suspended")
        assert received(stack) == 0

        client.batches.cancel(batch.id)

        until(lambda: client.batches.retrieve(batch.id).status == "cancelled")
        until(lambda: state_of(stack, run) == "Cancelled")


def test_run_resumed_before_old_process_stops_continues_in_one_process(stack):
    with Simulator(SimulatorOptions(latency_s=10)) as slow:
        with temporary_settings({PREFECT_API_URL: stack.api}):
            UpstreamBlock(base_url=slow.base_url, max_in_flight=16).save("slow", overwrite=True)
        run = stack.start(input_uri=str(write_requests(stack.inbox / "slow.jsonl", 32)), upstreams=["slow"])
        until(lambda: slow.counters()["received"] >= 16)

        suspend(stack, run)
        stack.call("POST", f"/flow_runs/{run}/resume")

        until(lambda: state_of(stack, run) == "Completed")
        assert slow.counters()["received"] == 32
    assert batch_of(stack, "slow.jsonl").completed == 32
    names = [state["name"] for state in stack.call("GET", f"/flow_run_states/?flow_run_id={run}")]
    assert not {"Failed", "Crashed"} & set(names), names


def test_suspended_or_finished_run_is_not_reported_as_crashed(stack):
    began = datetime.now(UTC).isoformat()
    run = started(stack, "left.jsonl")
    suspend(stack, run)
    folder = stack.inbox / "empty"
    folder.mkdir()
    deployment = stack.call("GET", "/deployments/name/sync-source/sync-source")["id"]
    short = stack.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"uri": str(folder)}})[
        "id"
    ]
    until(lambda: state_of(stack, short) == "Completed")
    sent = received(stack)

    time.sleep(CRASH_AFTER_S + FIRES_WITHIN_S)

    assert (state_of(stack, run), state_of(stack, short)) == ("Suspended", "Completed")
    assert received(stack) <= sent + 32
    wanted = {"event": {"name": ["prefect.automation.triggered"]}, "occurred": {"since": began}}
    fired = stack.call("POST", "/events/filter", {"filter": wanted})["events"]
    of_runs = {event["payload"].get("triggering_labels", {}).get("prefect.resource.id") for event in fired}
    assert not {f"prefect.flow-run.{each}" for each in (run, short)} & of_runs


def test_run_crashed_after_suspension_is_not_continued(stack):
    run = started(stack, "crashed.jsonl")
    suspend(stack, run)
    until(lambda: batch_of(stack, "crashed.jsonl").lease_owner is None)
    sent = received(stack)

    stack.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CRASHED"}})

    follower = until(lambda: [each for each in stack.runs().values() if run in str(each["parameters"])])[0]["id"]
    until(lambda: state_of(stack, follower) == "Failed")
    assert received(stack) == sent


def test_suspend_and_resume_on_run_page_repeat_nothing(stack, worker, pages):
    name = f"pressed{pages.version[1:]}.jsonl"
    run = started(stack, name, LONG)

    pages.press(run, "Suspend")

    until(lambda: not children_of(worker.pid), timeout_s=STOPS_WITHIN_S)
    sent = received(stack)
    assert sent < LONG
    time.sleep(5)
    assert received(stack) == sent

    pages.press(run, "Resume")

    check_whole(stack, name, LONG)
    until(lambda: state_of(stack, run) == "Completed")


def test_suspended_run_cancelled_on_page_cancels_batch_and_keeps_answers(stack, pages):
    name = f"cancelled{pages.version[1:]}.jsonl"
    run = started(stack, name)
    suspend(stack, run)
    until(lambda: batch_of(stack, name).lease_owner is None)
    sent = received(stack)

    pages.press(run, "Cancel")
    deployment = stack.call("GET", "/deployments/name/housekeeping/housekeeping")["id"]
    stack.call("POST", f"/deployments/{deployment}/create_flow_run", {})

    until(lambda: batch_of(stack, name).status == "cancelled")
    assert (batch_of(stack, name).completed, received(stack)) == (sent, sent)


def test_run_failed_during_suspension_continues_by_retry_on_page(stack, pages):
    name = f"retried{pages.version[1:]}.jsonl"
    run = started(stack, name)
    suspend(stack, run)
    until(lambda: batch_of(stack, name).lease_owner is None)
    failed = {"type": "FAILED", "message": "The flow was paused and never resumed."}  # as after five minutes
    stack.call("POST", f"/flow_runs/{run}/set_state", {"state": failed, "force": True})

    pages.press(run, "Retry")

    check_whole(stack, name)

"""Stopping a run, and going on with it: signals, kills, cancels, closed windows, other runners."""

import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from helpers.command_line import COMMAND, CommandResult, Terminal, batch_id_in, run_batchline, running_command
from helpers.polling import until
from helpers.record_edits import change_batch

from batchline.models.settings import load_settings
from batchline.models.status import BatchStatus
from batchline.models.stop_signals import REPEATED_WITHIN_S
from batchline.storage.records.store import Records, open_records

pytestmark = pytest.mark.system  # each starts processes, and signals them

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def records() -> Records:
    """The records of the test's own home."""
    return open_records(load_settings())


def go_on_as_told(stopped: CommandResult, **changes: str) -> CommandResult:
    """Type what a run that stopped has printed."""
    found = re.search(r"^to continue: (batchline .+)$", stopped.err, re.MULTILINE)
    assert found, stopped.err
    command, *arguments = shlex.split(found[1])
    assert command == Path(COMMAND).name
    return run_batchline(*arguments, **changes)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_run_stopped_by_signal_prints_signal_and_batch(number, start_simulator, request_file):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}

    with running_command("run", "--local", "--json", request_file(200), **url) as run:
        until(lambda: upstream.counters()["received"] >= 10)
        run.kill(number)
        stopped = run.wait()

    assert stopped.status == 6
    assert f"stopped by {number.name}" in stopped.err
    assert stopped.out.startswith('{"id":"batch-')
    assert '"status":"in_progress"' in stopped.out


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_run_on_repeated_signal_stops_cleanly(number, start_simulator, request_file):
    upstream = start_simulator(latency_s=0.5)
    url = {"OPENAI_BASE_URL": upstream.base_url}
    with running_command("run", "--local", request_file(200), **url, BATCHLINE_MAX_IN_FLIGHT="8") as run:
        until(lambda: upstream.counters()["received"] >= 20)
        run.kill(number)
        time.sleep(0.3)  # or both might be delivered as one
        run.kill(number)
        stopped = run.wait()
    answered = upstream.counters()["received"]
    resumed = go_on_as_told(stopped, **url)

    assert (stopped.status, resumed.status) == (6, 0)
    assert 20 <= answered < 200
    assert (upstream.counters()["received"], upstream.counters()["repeated"]) == (200, 0)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_run_on_later_second_signal_is_killed(number, start_simulator, request_file):
    upstream = start_simulator(latency_s=60)
    with running_command("run", "--local", request_file(20), OPENAI_BASE_URL=upstream.base_url) as run:
        until(lambda: upstream.counters()["received"] == 20)
        run.kill(number)
        run.wait_for("stopping: requests in flight have 15 s to finish (Ctrl-C again to kill)")
        time.sleep(REPEATED_WITHIN_S)
        run.kill(number)
        killed = run.wait(timeout_s=5)

    assert killed.status == -number
    assert "Traceback" not in killed.err


def test_run_resumed_on_same_machine_after_kill_starts_without_waiting(start_simulator, request_file):
    upstream = start_simulator(latency_s=0.1)
    settings = {
        "OPENAI_BASE_URL": upstream.base_url,
        "BATCHLINE_LEASE_S": "3600",  # longer than this test would wait for it
        "BATCHLINE_MAX_IN_FLIGHT": "5",
    }
    with running_command("run", "--local", request_file(100), **settings) as run:
        until(lambda: upstream.counters()["received"] >= 20)
        run.kill(signal.SIGKILL)
        run.wait()

    resumed = run_batchline("run", "--local", "--resume", run.batch_id, **settings)

    assert resumed.status == 0
    assert upstream.counters()["distinct"] == 100


def test_resume_of_batch_run_by_other_process_is_rejected(start_simulator, request_file):
    upstream = start_simulator(latency_s=0.5)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "2"}
    with running_command("run", "--local", request_file(100), **url) as run:
        until(lambda: upstream.counters()["received"] >= 2)
        second = run_batchline("run", "--local", "--resume", run.batch_id, **url)
        assert upstream.counters()["received"] < 100  # that is, it waits for nothing

    assert second.status == 2
    assert "is being run by another process" in second.err


def test_run_of_batch_cancelled_meanwhile_exits_with_5(start_simulator, request_file, records):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}
    with running_command("run", "--local", request_file(200), **url) as run:
        until(lambda: upstream.counters()["received"] >= 8)
        records.change_status(run.batch_id, BatchStatus.CANCELLING, now=int(time.time()))
        cancelled = run.wait()

    assert cancelled.status == 5
    assert re.search(r"^status +cancelled$", cancelled.out, re.MULTILINE)
    assert re.search(r"^failures +batch_cancelled \d+$", cancelled.out, re.MULTILINE)


def test_run_of_batch_paused_meanwhile_exits_with_7_and_resumes(start_simulator, request_file, records):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}
    with running_command("run", "--local", request_file(60), **url) as run:
        until(lambda: upstream.counters()["received"] >= 8)
        records.pause(run.batch_id, code="by_user", message="the price went up")
        paused = run.wait()
    sent = upstream.counters()["received"]
    resumed = go_on_as_told(paused, **url)

    assert (paused.status, resumed.status) == (7, 0)
    assert f"paused: batch {run.batch_id} is paused: the price went up" in paused.err
    assert 8 <= sent < 60
    assert (upstream.counters()["received"], upstream.counters()["repeated"]) == (60, 0)


def test_run_at_terminal_asks_whether_to_resume_paused_batch(start_simulator, request_file, records):
    url = {"OPENAI_BASE_URL": start_simulator(latency_s=0.3).base_url, "BATCHLINE_MAX_IN_FLIGHT": "2"}
    with Terminal("run", "--local", request_file(30), **url) as run:
        run.wait_for("2 in flight")
        records.pause(batch_id_in(run.text), code="by_user", message="the price went up")
        run.wait_for("continue?")
        run.type("y\n")
        assert run.wait() == 0

    assert "30 completed" in run.text


def test_resume_after_completion_window_exits_with_5(start_simulator, request_file, records):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url}
    with running_command("run", "--local", request_file(100), **url, BATCHLINE_MAX_IN_FLIGHT="4") as run:
        until(lambda: upstream.counters()["received"] >= 8)
        run.kill(signal.SIGINT)
        stopped = run.wait()
    change_batch(records, run.batch_id, expires_at=int(time.time()) - 1)

    expired = go_on_as_told(stopped, **url)

    assert expired.status == 5
    assert re.search(r"its completion window closed at .+ UTC: nothing more is sent, and it ends as", expired.err)
    assert f"to send the others afterwards: batchline batches retry {run.batch_id}" in expired.err
    assert re.search(r"^status +expired$", expired.out, re.MULTILINE)
    assert re.search(r"^failures +batch_expired \d+$", expired.out, re.MULTILINE)


def test_resume_past_completion_window_is_reported_if_allowed(start_simulator, request_file, records):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_RUN_PAST_WINDOW": "true"}
    with running_command("run", "--local", request_file(50), **url, BATCHLINE_MAX_IN_FLIGHT="4") as run:
        until(lambda: upstream.counters()["received"] >= 8)
        run.kill(signal.SIGINT)
        stopped = run.wait()
    change_batch(records, run.batch_id, expires_at=int(time.time()) - 1)

    ended = go_on_as_told(stopped, **url)

    assert ended.status == 0
    assert "it runs anyway, because BATCHLINE_RUN_PAST_WINDOW is set" in ended.err


def test_resume_of_simulator_run_without_upstream_is_rejected(request_file, run_cli):
    with running_command("run", "--local", request_file(300)) as run:
        run.wait_for("batch: ")
        run.kill(signal.SIGINT)
        stopped = run.wait()

    assert stopped.err.rstrip().endswith(f"to continue: batchline run --resume {run.batch_id} --local --stand-in")
    refused = run_cli("run", "--local", "--resume", run.batch_id)
    assert refused.status == 2
    assert "no upstream is configured" in refused.err


def test_run_that_loses_lease_exits_with_6(start_simulator, request_file, records):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}
    with running_command("run", "--local", request_file(200), **url) as run:
        until(lambda: upstream.counters()["received"] >= 8)
        records.claim(run.batch_id, owner="another", now=time.time() + 1_000, lease_s=1)
        lost = run.wait()

    assert lost.status == 6
    assert "has been taken over by another runner (another)" in lost.err


def test_run_stopped_by_storage_failure_resumes_without_resending(start_simulator, request_file, tmp_path):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url}
    with running_command("run", "--local", request_file(100), **url, BATCHLINE_MAX_IN_FLIGHT="10") as run:
        in_the_way = tmp_path / "home" / "storage" / "batches" / run.batch_id / "output.jsonl"
        (in_the_way / "x").mkdir(parents=True)
        stopped = run.wait()
    (in_the_way / "x").rmdir()
    in_the_way.rmdir()

    resumed = go_on_as_told(stopped, **url)

    assert (stopped.status, resumed.status) == (6, 0)
    assert "Traceback" not in stopped.err
    assert upstream.counters()["received"] == 100

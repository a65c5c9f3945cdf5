"""`batchline run` as a flow run: on a server that stays, and on one for the time of the command."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from helpers.command_line import PREFECT_HOME, Terminal, command_env, run_batchline
from helpers.polling import until
from helpers.shared_servers import prefect_home

from batchline.cli.temporary_server import TemporaryServer
from batchline.models.errors import Interrupted

pytestmark = pytest.mark.system

HOLD_A_SERVER = """
import sys
from batchline.cli.temporary_server import TemporaryServer
from batchline.models.errors import Interrupted
server = TemporaryServer()
server.wait_until_ready()
print(server.url, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def made_home() -> None:
    """Spare each temporary server the making of its database."""
    prefect_home(Path(PREFECT_HOME))


def states_of_runs(api: str, batch_id: str) -> list[str]:
    """The states of the flow runs whose name has that in it."""
    asked = json.dumps({"flow_runs": {"name": {"like_": batch_id}}}).encode()
    request = urllib.request.Request(f"{api}/flow_runs/filter", asked, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return [run["state_name"] for run in json.load(answer)]


def is_gone(url: str) -> bool:
    port = int(url.split(":")[2].removesuffix("/api"))
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_run_creates_flow_run_on_configured_server(start_simulator, request_file, prefect_api):
    upstream = start_simulator(api_key="sk-prefect-3141")
    ended = run_batchline(
        *("run", "--json", request_file(50)),
        OPENAI_BASE_URL=upstream.base_url,
        OPENAI_API_KEY="sk-prefect-3141",
        PREFECT_API_URL=prefect_api,
    )

    batch = json.loads(ended.out)
    assert (ended.status, batch["request_counts"]["completed"], ended.out.count("\n")) == (0, 50, 1)
    assert states_of_runs(prefect_api, batch["id"]) == ["Completed"]
    assert f"Prefect server: {prefect_api}" in ended.err
    assert "sk-prefect" not in ended.out + ended.err


def test_run_with_all_failed_exits_with_4_and_flow_run_fails(start_simulator, request_file, prefect_api):
    upstream = {"OPENAI_BASE_URL": start_simulator().base_url, "PREFECT_API_URL": prefect_api}

    ended = run_batchline("run", "--json", request_file(10, refused=range(10)), **upstream)

    assert ended.status == 4
    assert states_of_runs(prefect_api, json.loads(ended.out)["id"]) == ["Failed"]
    assert "Traceback" not in ended.err


def test_prefect_run_with_invalid_input_prints_no_traceback(start_simulator, request_file, prefect_api):
    path = request_file(3)
    path.write_text(path.read_text() + "{oops\n")

    ended = run_batchline("run", path, OPENAI_BASE_URL=start_simulator().base_url, PREFECT_API_URL=prefect_api)

    assert ended.status == 2
    assert "(invalid_json_line)" in ended.out
    assert "Traceback" not in ended.err
    told = [line for line in ended.err.splitlines() if " · " not in line]  # how long it takes is said every 5 s
    assert len(told) == 3


def test_ctrl_c_with_temporary_server_stops_cleanly_and_run_resumes(start_simulator, request_file, prefect_api):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "8"}

    with Terminal("run", request_file(200), **url) as terminal:
        terminal.wait_for("starting a temporary Prefect server · 1 s")
        terminal.wait_for("8 in flight")
        terminal.press_ctrl_c()
        status = terminal.wait()
    told = re.search(r"to continue: (batchline run --resume batch-[0-9a-f]{32})\s*$", terminal.text)
    assert told, terminal.text
    resumed = run_batchline(*shlex.split(told[1])[1:], **url, PREFECT_API_URL=prefect_api)

    assert (status, resumed.status) == (6, 0)
    assert "Traceback" not in terminal.text
    assert "ERROR" not in terminal.text
    assert (upstream.counters()["received"], upstream.counters()["repeated"]) == (200, 0)


def test_ctrl_c_during_server_start_exits_with_resume_command(request_file):
    with Terminal("run", request_file(10)) as terminal:
        terminal.wait_for("starting a temporary Prefect server")
        terminal.press_ctrl_c()
        status = terminal.wait(timeout_s=20)

    assert status == 6
    assert "to continue: batchline run --resume batch-" in terminal.text
    assert "Traceback" not in terminal.text


def test_run_with_unreachable_prefect_exits_with_resume_command(start_simulator, request_file):
    ended = run_batchline(
        *("run", request_file(10)),
        OPENAI_BASE_URL=start_simulator().base_url,
        PREFECT_API_URL="http://127.0.0.1:9/api",
    )

    assert ended.status == 6
    assert "stopped: Prefect failed: " in ended.err
    assert "http://127.0.0.1:9/api" in ended.err
    assert "to continue: batchline run --resume batch-" in ended.err
    assert "Traceback" not in ended.err


def test_run_without_prefect_server_suggests_url_or_local_option(request_file):
    ended = run_batchline("run", request_file(3), PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false")

    assert ended.status == 6
    assert "PREFECT_API_URL" in ended.err
    assert "--local" in ended.err


def test_temporary_server_stops_when_its_command_is_killed():
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER],
        env=command_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with held:
        assert held.stdout
        url = held.stdout.readline().strip()
        held.send_signal(signal.SIGKILL)
    until(lambda: is_gone(url))


def test_temporary_server_start_failure_reports_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////dev/null/x.db")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    server = TemporaryServer()
    with pytest.raises(Interrupted, match=r"did not start: .+--local"):
        server.wait_until_ready()

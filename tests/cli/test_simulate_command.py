"""`batchline simulate` and `batchline db upgrade`."""

import json
import re
import signal
import socket
import sqlite3
import urllib.request

import pytest
from helpers.command_line import RunningCommand, run_batchline, running_command


def address_of(command: RunningCommand) -> str:
    command.wait_for("batchline run FILE")
    found = re.search(r"^serving at (\S+)$", command.err, re.MULTILINE)
    assert found
    return found[1]


def test_simulate_serves_until_ctrl_c(request_file, run_cli):
    with running_command("simulate", "--port", "0", "--answer-tokens", "7", "--seed", "3") as simulator:
        url = address_of(simulator)
        ended = run_cli("run", "--local", "--json", request_file(4), OPENAI_BASE_URL=url)
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/simulator/counters") as answer:
            counted = json.load(answer)
        simulator.kill(signal.SIGINT)
        stopped = simulator.wait(timeout_s=5)

    assert (ended.status, counted["received"]) == (0, 4)
    assert (stopped.status, stopped.out) == (0, "")


def test_simulate_with_port_in_use_reports_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_batchline("simulate", "--port", str(port))

    assert ended.status == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in ended.err
    assert "already in use" in ended.err


def test_simulate_sends_the_named_faults(request_file, run_cli):
    faults = ("--fault", "finish_length=0.5", "--fault", "bom=0.5")
    with running_command("simulate", "--port", "0", *faults) as simulator:
        url = address_of(simulator)
        ended = run_cli("run", "--local", "--json", request_file(20), OPENAI_BASE_URL=url)
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/simulator/counters") as answer:
            counted = json.load(answer)

    assert (ended.status, counted["received"]) == (0, 20)
    assert sum(counted["faults"].values()) == 20
    assert set(counted["faults"]) == {"finish_length", "bom"}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("htlm=0.1", "no fault is named 'htlm'"), ("html=2", "from 0 to 1"), ("html", "write KIND=SHARE")],
)
def test_simulate_with_wrong_fault_reports_error(fault, problem):
    ended = run_batchline("simulate", "--fault", fault)

    assert ended.status == 2
    assert f"--fault {fault}: " in ended.err
    assert problem in ended.err


def test_simulate_does_not_print_api_key():
    with running_command("simulate", "--port", "0", "--api-key", "sk-demo-99") as simulator:
        address_of(simulator)
        simulator.kill(signal.SIGTERM)
        assert "sk-demo-99" not in simulator.wait(timeout_s=5).err


def test_db_upgrade_creates_tables_and_is_idempotent(tmp_path, run_cli):
    first, second = run_cli("db", "upgrade"), run_cli("db", "upgrade")

    assert (first.status, second.status) == (0, 0)
    with sqlite3.connect(tmp_path / "home" / "batchline.db") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    assert {"batches", "files"} <= tables

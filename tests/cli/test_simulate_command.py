"""`batchline simulate` and `batchline db upgrade`."""

import json
import re
import signal
import socket
import sqlite3
import urllib.request

from typed import Running, batchline, running


def address_of(command: Running) -> str:
    command.wait_for("batchline run FILE")
    found = re.search(r"^serving at (\S+)$", command.err, re.MULTILINE)
    assert found
    return found[1]


def test_a_stand_in_serves_until_ctrl_c(request_file):
    with running("simulate", "--port", "0", "--answer-tokens", "7", "--seed", "3") as stand_in:
        url = address_of(stand_in)
        ended = batchline("run", "--local", "--json", request_file(4), OPENAI_BASE_URL=url)
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/simulator/counters") as answer:
            counted = json.load(answer)
        stand_in.kill(signal.SIGINT)
        stopped = stand_in.ended(timeout_s=5)

    assert (ended.status, counted["received"]) == (0, 4)
    assert (stopped.status, stopped.out) == (0, "")


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = batchline("simulate", "--port", str(port))

    assert ended.status == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in ended.err
    assert "already in use" in ended.err


def test_the_key_that_a_stand_in_wants_is_not_told():
    with running("simulate", "--port", "0", "--api-key", "sk-demo-99") as stand_in:
        address_of(stand_in)
        stand_in.kill(signal.SIGTERM)
        assert "sk-demo-99" not in stand_in.ended(timeout_s=5).err


def test_db_upgrade_makes_the_tables_and_may_be_repeated(tmp_path):
    first, second = batchline("db", "upgrade"), batchline("db", "upgrade")

    assert (first.status, second.status) == (0, 0)
    with sqlite3.connect(tmp_path / "home" / "batchline.db") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    assert {"batches", "files"} <= tables

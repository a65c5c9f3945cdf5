"""`batchline serve`: how it starts, stops, and goes on with what was left."""

import json
import signal
import time

import openai
import pytest
from helpers.api_server import ENDPOINT, wait_for_end
from helpers.command_line import RunningCommand, run_batchline
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.models.settings import load_settings

pytestmark = pytest.mark.system  # each starts processes, and signals them


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_until_signal_and_exits_with_0(number, tmp_path, start_simulator):
    server = RunningCommand("serve", "--port", "0", folder=tmp_path, OPENAI_BASE_URL=start_simulator().base_url)
    server.wait_for("open to every program")
    url = server.err.partition("serving at ")[2].split()[0]
    with openai.OpenAI(base_url=url, api_key="none") as client:
        file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        assert wait_for_end(client, batch.id).status == "completed"

    server.kill(number)

    ended = server.wait()
    assert (ended.status, ended.out) == (0, "")
    assert json.loads(run_batchline("show", batch.id, "--json").out)["dwext"] == {"source": "api"}


def test_serve_on_repeated_signal_saves_results_and_exits_with_0(tmp_path, start_simulator):
    upstream = start_simulator(latency_s=0.5)
    settings = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}
    server = RunningCommand("serve", "--port", "0", folder=tmp_path, **settings)
    server.wait_for("serving at ")
    with openai.OpenAI(base_url=server.err.partition("serving at ")[2].split()[0], api_key="none") as client:
        file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 400), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        until(lambda: upstream.counters()["received"] >= 8)

    server.kill(signal.SIGTERM)
    time.sleep(0.05)  # or both might be delivered as one
    server.kill(signal.SIGTERM)

    assert server.wait().status == 0
    sent = upstream.counters()["received"]
    again = run_batchline("run", "--local", "--resume", batch.id, **{**settings, "BATCHLINE_MAX_IN_FLIGHT": "64"})
    assert (again.status, upstream.counters()["received"]) == (0, 400)
    assert 8 <= sent < 400


def test_serve_resumes_batches_of_killed_server(tmp_path, start_simulator):
    settings = {
        "OPENAI_BASE_URL": start_simulator(latency_s=0.2).base_url,
        "BATCHLINE_LEASE_S": "2",
        "BATCHLINE_MAX_IN_FLIGHT": "4",
    }
    first = RunningCommand("serve", "--port", "0", folder=tmp_path, **settings)
    first.wait_for("serving at ")
    with openai.OpenAI(base_url=first.err.partition("serving at ")[2].split()[0], api_key="none") as client:
        file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 40), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2)
    first.kill(signal.SIGKILL)
    first.wait()
    until(lambda: not still_held(batch.id))

    second = RunningCommand("serve", "--port", "0", folder=tmp_path, **settings)
    second.wait_for("serving at ")
    with openai.OpenAI(base_url=second.err.partition("serving at ")[2].split()[0], api_key="none") as client:
        over = wait_for_end(client, batch.id)
    second.kill(signal.SIGTERM)

    assert second.wait().status == 0
    assert (over.status, over.request_counts.completed) == ("completed", 40)


def still_held(batch_id: str) -> bool:
    client = Batchline(load_settings(lease_s=2))
    return client.batches.record(batch_id).is_leased(now=time.time(), lease_s=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "OPENAI_BASE_URL"),
        (["--host", "0.0.0.0", "--port", "0"], "keys create"),
        (["--host", "127.0.0.300"], "127.0.0.300"),
        (["--port", "99999"], "cannot listen"),
    ],
    ids=["no upstream", "no key", "no address", "no port"],
)
def test_serve_that_cannot_start_reports_reason(arguments, words):
    settings = {} if words == "OPENAI_BASE_URL" else {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    ended = run_batchline("serve", *arguments, **settings)

    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err

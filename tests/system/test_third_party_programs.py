"""Programs that others wrote for OpenAI's batches, unchanged but for their base URL, against a real server.

Each has an environment of its own, which `.ci/run` makes. They meet what breaks readers of batches: answers with
Unicode's line separators in them, failed requests, and batches that were cancelled or expired half-way.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from helpers.api_server import ENDPOINT, FINAL_STATUSES
from helpers.polling import until
from helpers.request_files import chat_line
from helpers.storage_servers import free_ports

from batchline.simulate import Simulator

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "api" / "clients"
TIMEOUT_S = 150
HANGS_S = 3.0
"""A request that has taken that long is one that the simulator never answers."""

SEPARATORS = "\u2028\u2029\x85"
ANSWERED = ["1?", "2 simulate:separators"]
ONE_FAILED = [*ANSWERED, "3 simulate:status=400"]
ONE_HANGING = ["1?", "2 simulate:hanging"]

SERVE = (
    "import sys; from batchline.models import batches; from batchline.cli import main; "
    "batches._WINDOW_UNIT_S.update(json.loads(sys.argv.pop(1))); sys.argv[0] = 'batchline'; main()"
)
"""The command, in a world in which days and hours may be shorter: these programs all ask for 24 h."""

pytestmark = pytest.mark.system


LOCAL = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Without it, their list of prices comes from the internet."""


class Server(NamedTuple):
    """A server that runs, and OpenAI's own client of it."""

    url: str
    client: openai.OpenAI
    simulator: Simulator


class Program:
    """One of the programs, as it runs."""

    def __init__(self, name: str, *arguments: str | Path) -> None:
        environment = installed("clients" if name == "litellm" else name)
        self._process = subprocess.Popen(
            [environment / "python", PROGRAMS / f"with_{name}.py", *arguments],
            env=os.environ | LOCAL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def is_over(self) -> bool:
        """True once it has ended."""
        return self._process.poll() is not None

    def result(self) -> Any:
        """Wait for its end and return what it printed last."""
        try:
            out, err = self._process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert self._process.returncode == 0, err[-3_000:]
        return json.loads(out.splitlines()[-1])

    def kill(self) -> None:
        """End it as a machine does that fails."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def installed(name: str) -> Path:
    """Return where the commands of that environment are; skips the test if it is missing."""
    found = ROOT / f".venv-{name}" / "bin"
    if not found.exists():
        pytest.skip(f".venv-{name} is missing: run `.ci/clients {name}`")
    return found


def served(folder: Path, units: dict[str, int]) -> Iterator[Server]:
    """Run the server with a simulator behind it; `units` says how many seconds a minute, hour and day last."""
    log = folder / "serve.log"
    with Simulator() as simulator, log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import json; {SERVE}", json.dumps(units), "serve", "--port", "0"],
            env={
                **os.environ,
                "BATCHLINE_HOME": str(folder),
                "OPENAI_BASE_URL": simulator.base_url,
                "BATCHLINE_GRACE_S": "0.2",
            },
            stderr=stderr,
            start_new_session=True,
        )
        try:
            until(lambda: "serving at " in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            url = log.read_text().partition("serving at ")[2].split()[0]
            with openai.OpenAI(base_url=url, api_key="none") as client:
                yield Server(url, client, simulator)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without anything special."""
    yield from served(tmp_path_factory.mktemp("server"), {})


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose hours last a second."""
    yield from served(tmp_path_factory.mktemp("hurried"), {"m": 1, "h": 1, "d": 24})


def cancel_half_way(server: Server, program: Program) -> None:
    """Cancel the batch whose last request hangs, which is the program's, or return once the program is over."""
    seen: dict[str, float] = {}

    def hangs() -> bool:
        for batch in server.client.batches.list():
            counts = batch.request_counts
            assert counts is not None
            if batch.status != "in_progress" or counts.total - counts.completed - counts.failed != 1:
                continue
            if time.monotonic() - seen.setdefault(batch.id, time.monotonic()) > HANGS_S:
                server.client.batches.cancel(batch.id)
                return True
        return program.is_over

    until(hangs, timeout_s=TIMEOUT_S)


def test_airflow_reads_each_request_by_its_outcome(server, hurried, tmp_path):
    expired = Program("airflow", hurried.url, "none", tmp_path, "expired", json.dumps(ONE_HANGING))
    whole = Program("airflow", server.url, "none", tmp_path, "whole", json.dumps(ONE_FAILED))
    cancelled = Program("airflow", server.url, "none", tmp_path, "cancelled", json.dumps(ONE_HANGING))
    cancel_half_way(server, cancelled)

    found = whole.result()
    assert [row["status"] for row in found["rows"]] == ["success", "success", "error"]
    assert found["rows"][1]["output"].startswith(f"{SEPARATORS}the ")
    assert found["rows"][2]["error"]["provider_code"] == "invalid_request"
    assert counted(found) == {"succeeded": 2, "errored": 1}

    found = expired.result()
    assert (found["manifest"]["terminal_reason"], counted(found)) == ("expired", {"succeeded": 1, "expired": 1})

    found = cancelled.result()
    assert found["raised"] == "LLMBatchCancelledError"
    assert "cancelled before 1 of 2 requests completed" in found["message"]


def counted(landed: dict[str, Any]) -> dict[str, int]:
    """Return the counts of Airflow's manifest that are not 0."""
    return {name: count for name, count in landed["manifest"]["counts"].items() if count}


def test_airflow_resumes_its_batch_after_kill_without_repeated_requests(server, tmp_path):
    arguments = (server.url, "none", tmp_path, "killed", json.dumps(["once?", "twice?"]))
    first = Program("airflow", *arguments)
    state_file = until(lambda: recorded(tmp_path), timeout_s=TIMEOUT_S)
    first.kill()
    received = server.simulator.counters()["received"]
    state = json.loads(state_file.read_text())

    again = Program("airflow", *arguments).result()
    # As a crash leaves it between the answer of the server and the note of the batch's id.
    intent = {"schema_version", "key", "input_fingerprint", "output_schema_digest", "intent_at"}
    state_file.write_text(json.dumps({name: state[name] if name in intent else None for name in state}))
    found = Program("airflow", *arguments).result()

    assert again["manifest"]["batch_id"] == found["manifest"]["batch_id"] == state["batch_id"]
    assert counted(again) == counted(found) == {"succeeded": 2}
    assert server.simulator.counters()["received"] - received <= 2


def recorded(folder: Path) -> Path | None:
    """Return the file in which Airflow has noted the batch, once it names one."""
    for each in folder.glob("_airflow_batch_state/*.json"):
        if each.read_text() and json.loads(each.read_text())["batch_id"]:
            return each
    return None


def test_airflow_reports_fully_failed_batch_as_job_error(server, tmp_path):
    prompts = json.dumps(["1 simulate:status=400", "2 simulate:status=400"])

    found = Program("airflow", server.url, "none", tmp_path, "failed", prompts).result()

    assert found["raised"] == "LLMBatchJobError"
    assert "every request failed (invalid_request 2)" in found["message"]


def test_curator_keeps_answers_for_any_batch_end(server, hurried, tmp_path):
    folders = [tmp_path / name for name in ("expired", "whole", "cancelled")]
    expired = Program("curator", hurried.url, "none", folders[0], "5h", json.dumps(ONE_HANGING))
    whole = Program("curator", server.url, "none", folders[1], "24h", json.dumps(ONE_FAILED))
    cancelled = Program("curator", server.url, "none", folders[2], "24h", json.dumps(ONE_HANGING))
    while not cancelled.is_over:  # it sends once more what has no answer
        cancel_half_way(server, cancelled)

    texts = [row["response"] for row in whole.result()["rows"]]
    assert [text.partition("the ")[0] for text in texts] == ["", SEPARATORS]
    assert len(expired.result()["rows"]) == len(cancelled.result()["rows"]) == 1


def test_inspect_ai_terminates_for_any_batch_end(server, hurried):
    """It takes the code of an error for an HTTP status: one failed request fails all requests of its batch."""
    expired = Program("inspect", hurried.url, "none", "chat", json.dumps(ONE_HANGING))
    whole = {
        api: Program("inspect", server.url, "none", api, json.dumps(ANSWERED)) for api in ("chat", "responses")
    }
    failed = Program("inspect", server.url, "none", "chat", json.dumps(ONE_FAILED))
    cancelled = Program("inspect", server.url, "none", "chat", json.dumps(ONE_HANGING))
    cancel_half_way(server, cancelled)

    for api, program in whole.items():
        found = program.result()
        assert [kind for kind, _ in found] == ["answer", "answer"], api
        assert found[1][1].startswith(f"{SEPARATORS}the "), api
    for name, program in {"failed": failed, "expired": expired, "cancelled": cancelled}.items():
        assert {kind for kind, _ in program.result()} == {"TypeError"}, name


def test_litellm_reads_batch_with_any_end(hurried):
    found = Program("litellm", hurried.url, "none", "expire").result()

    assert found["expired"] == ["expired", {"total": 2, "completed": 1, "failed": 0}]
    assert found["purposes"] == ["batch_output", "batch_output"]
    assert found["separators"] == f"{SEPARATORS}the "
    assert (found["output"], found["errors"], found["cancelled"]) == (["r-1", "r-2"], ["r-0"], "cancelled")


def test_litellm_proxy_forwards_batch_operations(hurried, tmp_path):
    with proxied(hurried, tmp_path) as client:

        def batch_of(prompts: list[str]) -> openai.types.Batch:
            content = "\n".join(chat_line(number, prompt) for number, prompt in enumerate(prompts)).encode()
            file = client.files.create(file=("r.jsonl", content), purpose="batch", extra_body=PROVIDER)
            return client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", extra_body=PROVIDER
            )

        def ended(batch: openai.types.Batch) -> openai.types.Batch:
            retrieve = client.batches.retrieve
            return until(
                lambda: (found := retrieve(batch.id, extra_query=PROVIDER)).status in FINAL_STATUSES and found,
                timeout_s=TIMEOUT_S,
                every_s=0.5,
            )

        expired, cancelled = batch_of(ONE_HANGING), batch_of(ONE_HANGING)
        whole = ended(batch_of(ONE_FAILED))
        lines = [
            [json.loads(line) for line in client.files.content(each, extra_query=PROVIDER).text.splitlines()]
            for each in (whole.output_file_id, whole.error_file_id)
        ]
        client.batches.cancel(cancelled.id, extra_body=PROVIDER)
        files = client.files.list(extra_query=PROVIDER)

        assert [len(each) for each in lines] == [2, 1]
        assert lines[0][1]["response"]["body"]["choices"][0]["message"]["content"].startswith(f"{SEPARATORS}the ")
        assert len({each.id for each in files}) == len(hurried.client.files.list().data)
        assert ended(cancelled).status == "cancelled"
        over = ended(expired)
        assert (over.status, over.request_counts.completed, over.request_counts.failed) == ("expired", 1, 0)


PROVIDER = {"custom_llm_provider": "openai"}


@contextmanager
def proxied(server: Server, folder: Path) -> Iterator[openai.OpenAI]:
    """Run litellm's proxy before the server, with OpenAI's own client of it."""
    command, port, key = installed("clients") / "litellm", free_ports(1)[0], f"sk-{secrets.token_hex(24)}"
    upstream = {"custom_llm_provider": "openai", "api_base": server.url, "api_key": "none"}
    settings = {"files_settings": [upstream], "general_settings": {"master_key": key}, "model_list": []}
    (folder / "proxy.yaml").write_text(json.dumps(settings))
    with (folder / "proxy.log").open("w") as log:
        process = subprocess.Popen(
            [command, "--config", folder / "proxy.yaml", "--host", "127.0.0.1", "--port", str(port)],
            # Its files come from the settings, its batches from the environment.
            env=os.environ | LOCAL | {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as client:
            until(lambda: process.poll() is not None or answers(client), timeout_s=TIMEOUT_S, every_s=0.5)
            assert process.poll() is None, (folder / "proxy.log").read_text()[-3_000:]
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(client: openai.OpenAI) -> bool:
    """True once the proxy is up."""
    try:
        client.files.list(extra_query=PROVIDER)
    except openai.APIConnectionError:
        return False
    return True

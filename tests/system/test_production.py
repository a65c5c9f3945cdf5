"""The recipe of docs/production.md, step by step: PostgreSQL, auth string, retention, workers that come and go."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from helpers.prefect_server import BIN, ROOT, is_healthy
from helpers.prefect_stack import until, write_requests
from helpers.processes import kill_group, wait_unreaped
from helpers.storage_servers import Postgres, free_ports

from batchline import Batchline
from batchline.models.settings import load_settings
from batchline.simulate import Simulator, SimulatorOptions

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8").split("## More than one server process")[0]
SECRET = "w0ndrous"
"""In the place of every CHANGE-ME: the auth string's password, and those of the databases."""

TOTAL = 600


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
SERVER_COMMANDS, CLIENT_COMMANDS = COMMANDS[:2], COMMANDS[2:]


@dataclass
class ProductionSetup:
    """A server and its clients as the page makes them, here."""

    folder: Path
    postgres: Postgres
    simulator: Simulator
    port: int
    log: Path

    def here(self, text: str) -> str:
        """The page's text with this machine's places."""
        places = {
            "CHANGE-ME": SECRET,
            "127.0.0.1:5432": f"127.0.0.1:{self.postgres.port}",
            "https://prefect.example.com": f"http://127.0.0.1:{self.port}",
            "--port 4200": f"--port {self.port}",
            "s3://my-bucket/batchline": str(self.folder / "storage"),
            "s3://my-bucket/jobs": str(self.folder),
            "http://vllm.example.com:8000/v1": self.simulator.base_url,
            "/var/lib": str(self.folder),
        }
        for place, ours in places.items():
            text = text.replace(place, ours)
        return text

    def environment(self, block: int) -> dict[str, str]:
        """Variables that the page sets for the server (0) and all others (1), with shorter times for the test."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BATCHLINE_"))
        }
        told = dict(line.split("=", 1) for line in self.here(blocks("ini")[block]).splitlines())
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "3"}
        return {**kept, "DO_NOT_TRACK": "1", "BATCHLINE_MAX_IN_FLIGHT": "16", **quick, **told}

    def run_command(self, command: list[str], environment: Mapping[str, str]) -> str:
        """Run the command, check that it succeeds, and return its output."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            words = [str(BIN / command[0]), *shlex.split(self.here(shlex.join(command[1:])))]
            return subprocess.Popen(
                words, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A worker until the block ends; it is then stopped as its unit has systemd do it."""
        worker = self.start(CLIENT_COMMANDS[-1], self.environment(1))
        try:
            yield
            subprocess.run(stop_command(), env={**os.environ, "MAINPID": str(worker.pid)}, timeout=60)
        finally:
            end(worker)

    def call(self, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}/api{path}"
        return httpx.request("POST" if body else "GET", url, json=body, auth=("batchline", SECRET), timeout=30)

    def runs(self, state: str) -> list[dict[str, str]]:
        wanted = {
            "flows": {"name": {"any_": ["process-batch"]}},
            "flow_runs": {"state": {"type": {"any_": [state]}}},
        }
        return list(self.call("/flow_runs/filter", wanted).json())

    def slots_taken(self) -> dict[str, int]:
        """Return the slots taken of the limits that enforce an upstream's caps over all processes, by kind."""
        limits = self.call("/v2/concurrency_limits/filter", {"limit": 50}).json()
        place = self.simulator.base_url.split(":")[2].split("/")[0]
        ours = re.compile(rf"batchline-.*-{place}-(.+)")
        return {found[1]: each["active_slots"] for each in limits if (found := ours.fullmatch(each["name"]))}

    def client(self) -> Batchline:
        settings = self.environment(1)
        return Batchline(
            load_settings(
                database_url=settings["BATCHLINE_DATABASE_URL"],
                storage_url=settings["BATCHLINE_STORAGE_URL"],
                home=settings["BATCHLINE_HOME"],
                base_url=self.simulator.base_url,
            )
        )


def stop_command() -> list[str]:
    """The command that systemd runs before it signals a worker to stop."""
    unit = (ROOT / "deploy" / "systemd" / "batchline-worker.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStop=(.*)$", unit.replace("\\\n", " "), re.MULTILINE)
    return shlex.split(command)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        wait_unreaped(process, 60)
    finally:
        kill_group(process)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[ProductionSetup]:
    """The server, its databases, and what is set up on it."""
    folder = tmp_path_factory.mktemp("production")
    (folder / "prefect").mkdir()
    with Simulator(SimulatorOptions(latency_s=0.2)) as simulator:
        made = ProductionSetup(folder, postgres, simulator, free_ports(1)[0], folder / "log")
        try:
            for statement in "".join(blocks("sql")).replace("CHANGE-ME", SECRET).splitlines():
                postgres.run(statement)
            made.run_command(SERVER_COMMANDS[0], made.environment(0))
            server = made.start(SERVER_COMMANDS[1], made.environment(0))
            try:
                until(lambda: is_healthy(f"http://127.0.0.1:{made.port}/api"))
                for command in CLIENT_COMMANDS[:-1]:
                    made.run_command(command, made.environment(1))
                yield made
            finally:
                end(server)
        finally:
            for name in ("prefect", "batchline"):
                postgres.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                postgres.run(f"DROP ROLE IF EXISTS {name}")


def test_production_guide_contains_tested_commands():
    assert [" ".join(command[:3]) for command in COMMANDS] == [
        "prefect server database",
        "prefect server start",
        "batchline db upgrade",
        "batchline prefect setup",
        "prefect deploy --all",
        "prefect worker start",
    ]


def test_batch_survives_stopped_worker_and_vacuumed_run(stack):
    path = write_requests(stack.folder / "nightly.jsonl", TOTAL)
    parameters = f'{{"input_uri": "{path}"}}'
    start = ["prefect", "deployment", "run", "process-batch/process-batch", "--params", parameters]
    stack.run_command(start, stack.environment(1))

    with stack.worker():
        until(lambda: stack.simulator.counters()["received"] > TOTAL // 4)
    (stopped,) = stack.runs("CRASHED")
    assert stack.slots_taken() == {"in-flight": 0, "processes": 0}
    with stack.worker():
        (completed,) = until(lambda: stack.runs("COMPLETED"))

    assert stack.simulator.counters()["repeated"] == 0
    with stack.client() as client:
        (batch,) = client.batches.list()
        assert (batch.status, batch.request_counts.completed) == ("completed", TOTAL)
        _no_secret_was_kept(stack)
        _vacuumed(stack, completed["id"], spared=stopped["id"])
        assert len(list(client.batches.results(batch.id))) == TOTAL


def _no_secret_was_kept(stack: ProductionSetup) -> None:
    """Neither in what Prefect has of runs, logs, artifacts and events, nor in our records, files and logs."""
    assert len(stack.call("/logs/filter", {"limit": 5}).json()) == 5
    for database, least in (("prefect", 100), ("batchline", 3)):
        rows = rows_of(stack.postgres, database)
        assert len(rows) > least
        assert [row for row in rows if SECRET in row] == []
    written = [path for path in stack.folder.rglob("*") if path.is_file()]
    assert stack.log in written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def rows_of(postgres: Postgres, database: str) -> list[str]:
    """Every row of every table, as text."""
    tables = postgres.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=database)
    found = (postgres.run(f'SELECT t::text FROM "{table}" t', database=database) for (table,) in tables)
    return [str(row) for rows in found for (row,) in rows]


def _vacuumed(stack: ProductionSetup, run: str, *, spared: str) -> None:
    """A run that ended before the retention goes, with its logs and artifacts; one that ended later stays."""
    theirs = {"flow_runs": {"id": {"any_": [run]}}}
    assert stack.call("/artifacts/filter", theirs).json()
    stack.postgres.run(
        f"UPDATE flow_run SET end_time = end_time - interval '31 days' WHERE id = '{run}'", database="prefect"
    )

    until(lambda: stack.call(f"/flow_runs/{run}").status_code == 404)
    of_run = f"WHERE flow_run_id = '{run}'"
    for table in ("log", "artifact", "task_run", "flow_run_state"):
        until(lambda at=table: not stack.postgres.run(f"SELECT 1 FROM {at} {of_run} LIMIT 1", database="prefect"))
    assert stack.call(f"/flow_runs/{spared}").status_code == 200


def test_client_without_auth_string_is_rejected_with_hint(stack):
    environment = {**stack.environment(1), "PREFECT_API_AUTH_STRING": ""}
    done = subprocess.run(
        [str(BIN / "batchline"), "prefect", "setup"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert "set PREFECT_API_AUTH_STRING" in " ".join(done.stderr.split())

"""Batches as runs of a deployment: the worker, the process of a run or Prefect's server is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from bench.kills.account import Account
from bench.kills.servers import PostgreSQL, descendants, kill_tree, wait_for
from bench.kills.site import END_S, Site
from bench.servers import free_port

if TYPE_CHECKING:
    from bench.kills.site import Batch

ROOT = Path(__file__).parents[2]
CRASH_AFTER_S = 45
"""A run without a heartbeat for so long counts as crashed."""

BATCHES = 2
"""That run at the same time."""

MOST_KILLS = 3
DOWN_S = 8.0
LATE_S = 60.0
"""Seconds in which a batch that is over must be announced without housekeeping."""

LEAKED_AFTER_S = 310.0
"""Slots count as leaked when no process has used their upstream for this long."""

LIMITS = ("in-flight", "processes", "requests-per-minute", "tokens-per-minute")


class PrefectServer:
    """A Prefect server with leases in files and its records in PostgreSQL.

    On SQLite a busy server refuses writes ("database is locked"), and may stand still when a client is killed.
    """

    def __init__(self, home: Path, database: PostgreSQL) -> None:
        home.mkdir()
        self._home = home
        self._port = free_port()
        self.api = f"http://127.0.0.1:{self._port}/api"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = {
            **kept,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_DATABASE_CONNECTION_URL": database.url.replace("postgresql", "postgresql+asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [_program("prefect"), "server", "start", f"--port={self._port}", "--no-ui"]
        environment = {name: value for name, value in self.environment.items() if name != "PREFECT_API_URL"}
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._is_healthy, self._process, "Prefect's server")

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()

    def set_up(self) -> None:
        """Make our work pool, automations and deployments, by the documented commands."""
        for command in (
            ["batchline", "prefect", "setup", "--crash-after", str(CRASH_AFTER_S)],
            ["prefect", "deploy", "--all", "--no-prompt"],
        ):
            program, *arguments = command
            subprocess.run(
                [_program(program), *arguments], env=self.environment, cwd=ROOT, check=True, capture_output=True
            )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the API, again while it is restarted or its database is locked."""
        give_up_at = time.monotonic() + 60
        while True:
            try:
                answer = httpx.request(method, f"{self.api}{path}", json=body, timeout=30)
                if answer.status_code < 500:
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                if time.monotonic() > give_up_at:
                    raise
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{path} answers {answer.status_code}")
            time.sleep(1)


class Worker:
    """A worker that is started again whenever it is dead and needed."""

    def __init__(self, site: Site, server: PrefectServer) -> None:
        self._site = site
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start one unless it lives."""
        if self._process is None or self._process.poll() is not None:
            with (self._site.home / "worker").open("ab") as log:
                self._process = subprocess.Popen(
                    [_program("prefect"), "worker", "start", "--pool", "batchline"],
                    env=self._site.environment,
                    stdout=log,
                    stderr=log,
                    cwd=self._site.home,
                    start_new_session=True,
                )

    def kill(self) -> None:
        """Kill it with all runs that it has started."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()

    def kill_a_run(self) -> bool:
        """Kill the process of one of its runs; False if there is none."""
        assert self._process is not None
        for pid in descendants(self._process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"prefect.engine" in command or b"prefect.flow_engine" in command:
                kill_tree(pid)
                return True
        return False


class PrefectRounds:
    """Rounds of batches that run as a deployment's runs, and what is checked after all of them."""

    def __init__(self, site: Site, server: PrefectServer) -> None:
        self._site = site
        self._server = server
        self._worker = Worker(site, server)

    def kill(self, victim: str, kills: int) -> list[Account]:
        """Start some batches, kill the victim up to that many times, and drive the batches to their ends."""
        site = self._site
        self._worker.ensure()
        batches = [site.new_batch() for _ in range(BATCHES)]
        for batch in batches:
            self._start_run(batch)
        for _ in range(min(kills, MOST_KILLS)):
            if not self._pass_a_moment(batches):
                break
            self._kill(victim, batches)
        self._drive_to_end(batches)
        return [self._account(batch) for batch in batches]

    def _start_run(self, batch: Batch) -> None:
        deployment = self._server.call("GET", "/deployments/name/process-batch/process-batch")["id"]
        parameters = {"parameters": {"input_uri": str(batch.path)}}
        self._server.call("POST", f"/deployments/{deployment}/create_flow_run", parameters)

    def _pass_a_moment(self, batches: list[Batch]) -> bool:
        """Wait until one of the batches sends, and a random while longer; False if all are over."""
        give_up_at = time.monotonic() + END_S
        before = {batch.name: self._site.log.received(batch.name) for batch in batches}
        while all(self._site.log.received(batch.name) <= before[batch.name] for batch in batches):
            if all(self._site.is_over(batch) for batch in batches):
                return False
            if time.monotonic() > give_up_at:
                return False
            time.sleep(0.1)
        time.sleep(self._site.chance.uniform(0, 8))
        return not all(self._site.is_over(batch) for batch in batches)

    def _kill(self, victim: str, batches: list[Batch]) -> None:
        if victim == "worker":
            if self._site.chance.random() < 0.5 or not self._worker.kill_a_run():
                self._worker.kill()
        else:
            self._server.kill()
        for batch in batches:
            batch.killed_at.append(time.time())
        time.sleep(self._site.chance.uniform(0, DOWN_S))
        if victim != "worker":
            self._server.start()
        self._worker.ensure()

    def _drive_to_end(self, batches: list[Batch]) -> None:
        """Wait for a worker and the automations, and in the end for housekeeping; raises `TimeoutError`."""
        began = time.monotonic()
        while not all(self._site.is_over(batch) for batch in batches):
            self._worker.ensure()
            passed_s = time.monotonic() - began
            if passed_s > 2 * END_S:
                raise TimeoutError(f"batches {[batch.name for batch in batches]} have not ended")
            if passed_s > END_S:
                self.keep_house()
            time.sleep(1)

    def keep_house(self) -> None:
        """One round of housekeeping."""
        self._site.start("housekeeping", "--apply").wait(END_S)

    def _account(self, batch: Batch) -> Account:
        """The batch's account, and whether Prefect shows its end once and its run as completed."""
        account = self._site.account(batch)
        found = self._site.find(batch)
        assert found is not None
        give_up_at = time.monotonic() + LATE_S
        while not self._is_told(found.id, batch) and time.monotonic() < give_up_at:
            time.sleep(1)
        if not self._is_told(found.id, batch):
            self.keep_house()
            time.sleep(5)
        events, artifacts = self._events(found.id), self._artifacts(found.id)
        account.announced = max(events, artifacts)
        if events != artifacts:
            account.wrong.append(f"{events} events and {artifacts} artifacts tell of its end")
        if account.announced != 1:
            account.wrong.append(f"its end was announced {account.announced} times")
        if "COMPLETED" not in (states := self._states(batch)):
            account.wrong.append(f"none of its runs is completed: {states}")
        return account

    def _is_told(self, batch_id: str, batch: Batch) -> bool:
        return min(self._events(batch_id), self._artifacts(batch_id)) >= 1 and "COMPLETED" in self._states(batch)

    def _events(self, batch_id: str) -> int:
        wanted = {"event": {"name": ["batch.completed"]}, "resource": {"id": [f"batchline.batch.{batch_id}"]}}
        return len(self._server.call("POST", "/events/filter", {"filter": wanted, "limit": 50})["events"])

    def _artifacts(self, batch_id: str) -> int:
        wanted = {"artifacts": {"key": {"any_": [batch_id]}}}
        return len(self._server.call("POST", "/artifacts/filter", wanted))

    def _states(self, batch: Batch) -> list[str]:
        wanted = {"flow_runs": {"name": {"like_": batch.path.name}}}
        return [run["state_type"] for run in self._server.call("POST", "/flow_runs/filter", wanted)]

    def check_slots(self) -> list[Account]:
        """Wait until nobody has used the upstream for long, keep house, and look for slots that are taken."""
        self._worker.kill()
        time.sleep(LEAKED_AFTER_S)
        self.keep_house()
        limits = self._server.call("POST", "/v2/concurrency_limits/filter", {})
        taken = {
            limit["name"]: limit["active_slots"]
            for limit in limits
            if limit["active_slots"] and limit["name"].endswith(LIMITS)
        }
        wrong = [f"slots are taken though nothing runs: {taken}"] if taken else []
        return [Account("all", wrong=wrong)]

    def close(self) -> None:
        """Kill what runs."""
        self._worker.kill()


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))

"""The environment of batches that are to be killed: own settings, a logging upstream, the command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batchline import Batchline
from batchline.engine.services import Services
from batchline.models.settings import Settings, load_settings, to_environment
from batchline.models.status import TERMINAL_STATUSES
from batchline.models.upstreams import Upstream
from batchline.simulate import Simulator, SimulatorOptions
from batchline.storage.objects.select import open_objects
from batchline.storage.records.store import open_records
from bench.kills.account import FLUSH_S, IN_FLIGHT, LATENCY_S, UpstreamLog, account_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batchline.models.batches import BatchResponse
    from bench.kills.account import Account

REQUESTS = 600
END_S = 240.0
"""Seconds in which a batch that is killed no more must come to its end."""

LEASE_S = 2.0


@dataclass
class Batch:
    """A file of requests, and when its runner or a server was killed."""

    name: str
    path: Path
    killed_at: list[float] = field(default_factory=list)


class Site:
    """A storage and a database with an upstream, and the programs that use them."""

    def __init__(
        self,
        home: Path,
        upstream: Simulator,
        log: UpstreamLog,
        chance: random.Random,
        changes: Mapping[str, object],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.home = home
        self.log = log
        self.chance = chance
        self._environment = environment
        self.run_s = 6.0
        """Seconds that a run takes that is not killed, from start to end; learnt from the last one."""

        server = Upstream(base_url=upstream.base_url, max_in_flight=IN_FLIGHT)
        self.settings: Settings = load_settings(
            **{
                "home": home / "home",
                "upstreams": [server],
                "chunk_requests": 300,  # many flushes, so that a missing one is noticed
                "flush_interval_s": FLUSH_S,
                "lease_s": LEASE_S,
                "share_budgets": False,
                **changes,
            }
        )

    def new_batch(self) -> Batch:
        """A file of requests, each with a custom_id that the upstream is told as well."""
        name = f"b{self.chance.getrandbits(48):012x}"
        path = self.home / f"{name}.jsonl"
        with path.open("w") as file:
            for number in range(REQUESTS):
                custom_id = f"{name}/{number}"
                body = {"model": "m", "user": custom_id, "messages": [{"role": "user", "content": custom_id}]}
                line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps(line) + "\n")
        return Batch(name, path)

    @contextmanager
    def client(self) -> Iterator[Batchline]:
        """A client of its own each time: the database may be another one by then."""
        engine = Services(
            settings=self.settings, store=open_objects(self.settings), records=open_records(self.settings)
        )
        try:
            with Batchline(services=engine) as client:
                yield client
        finally:
            engine.records.close()

    def find(self, batch: Batch) -> BatchResponse | None:
        """The batch of that file, or None if it was not created yet."""
        with self.client() as client:
            found = client.batches.list(search=batch.path.name).data
        if len(found) > 1:
            raise RuntimeError(f"there are {len(found)} batches of {batch.path.name}")
        return found[0] if found else None

    def is_over(self, batch: Batch) -> bool:
        """True if the batch has ended."""
        found = self.find(batch)
        return found is not None and found.status in TERMINAL_STATUSES

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a batchline command; what it prints goes to a file."""
        program = [str(Path(sys.executable).with_name("batchline")), *command]
        with (self.home / "output").open("ab") as output:
            output.write(f"\n$ {time.time():.3f} batchline {' '.join(command)}\n".encode())
            return subprocess.Popen(
                program, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all programs."""
        return {**self._environment, **to_environment(self.settings)}

    def start_run(self, batch: Batch) -> subprocess.Popen[bytes]:
        """Run the batch, or go on with it if it exists already."""
        found = self.find(batch)
        return self.start("run", "--local", *([str(batch.path)] if found is None else ["--resume", found.id]))

    def pass_a_moment(self, batch: Batch, process: subprocess.Popen[bytes]) -> bool:
        """Wait for a random moment of the run; return False if the run ended before."""
        began = time.monotonic()
        before = self.log.received(batch.name)
        if self.chance.random() < 0.6:  # while it sends
            wanted = before + self.chance.uniform(0, 1) * max(1, REQUESTS - before)
            while process.poll() is None and self.log.received(batch.name) < wanted:
                time.sleep(0.01)
            time.sleep(self.chance.uniform(0, LATENCY_S))
        else:  # also while it starts, reads its input and writes its files
            until = began + self.chance.uniform(0, self.run_s)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
        return process.poll() is None

    def drive_to_end(self, batch: Batch) -> None:
        """Go on with the batch as users do until it has ended; raises `TimeoutError` if it never does."""
        give_up_at = time.monotonic() + END_S
        while time.monotonic() < give_up_at:
            if self.find(batch) is not None and self.chance.random() < 0.3:
                time.sleep(LEASE_S)
                self.start("housekeeping", "--apply").wait(END_S)
            else:
                began, is_new = time.monotonic(), self.find(batch) is None
                self.start_run(batch).wait(END_S)
                if is_new:
                    self.run_s = time.monotonic() - began
            if self.is_over(batch):
                return
        raise TimeoutError(f"batch {batch.name} has not ended after {END_S:.0f} s")

    def account(self, batch: Batch) -> Account:
        """The account of a batch that has ended."""
        with self.client() as client:
            (ended,) = client.batches.list(search=batch.path.name).data
            return account_of(client, ended, batch.name, REQUESTS, self.log, batch.killed_at)


@contextmanager
def logged_upstream(home: Path) -> Iterator[tuple[Simulator, UpstreamLog]]:
    """An upstream that writes down what it receives and answers."""
    path = home / "upstream.jsonl"
    path.touch()
    options = SimulatorOptions(latency="uniform", latency_s=LATENCY_S, log_file=path)
    with Simulator(options) as simulator:
        yield simulator, UpstreamLog(path)

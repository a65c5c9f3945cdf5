"""Figures of whole commands: how soon the first request goes out, and what a kill costs."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from bench.figures import Row
from bench.servers import stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measuring import World

KILLS = 10
FLUSH_S = 2.0


def start(world: World) -> Iterator[Row]:
    """Seconds from `batchline run` to the first request, warm."""
    path = world.file(2_000)
    bars = {"--local": 1.5, "on a running server": 6.0, "on a temporary server": None}
    for name, bar in bars.items():
        taken = []
        for _ in range(2 if bar is None else 4):
            with stand_in() as url, tempfile.TemporaryDirectory(dir=world.home) as home:
                taken.append(_first_request_s(world, name, path, url, home))
        kept = taken[1:]
        world.samples.setdefault("start", {})[name] = [{"seconds": each} for each in kept]
        yield Row(f"first request of `batchline run`, {name}", statistics.median(kept), most=bar, unit=" s")


def _first_request_s(world: World, name: str, path: Path, url: str, home: str) -> float:
    environment = {**world.environment, "BATCHLINE_HOME": home, "OPENAI_BASE_URL": url}
    if "temporary" in name:
        del environment["PREFECT_API_URL"]
    arguments = ["--local"] if name == "--local" else []
    began = time.perf_counter()
    run = _run([*arguments, str(path)], environment)
    try:
        while run.poll() is None:
            if _counters(url)["received"]:
                return time.perf_counter() - began
            time.sleep(0.02)
    finally:
        run.wait()
    raise RuntimeError("the run ended before a request was seen")


def kills(world: World) -> Iterator[Row]:
    """Ten kills at random moments, each followed by a resume."""
    n = world.count(20_000)
    path, chance = world.file(n), random.Random(7)
    lost = repeated = worst = 0
    for _ in range(KILLS):
        with (
            stand_in(latency="uniform", latency_s=0.05) as url,
            tempfile.TemporaryDirectory(dir=world.home) as home,
        ):
            environment = {
                **world.environment,
                "BATCHLINE_HOME": home,
                "OPENAI_BASE_URL": url,
                "BATCHLINE_LEASE_S": "2",
                "BATCHLINE_FLUSH_INTERVAL_S": str(FLUSH_S),
            }
            batch_id = _killed(path, environment, url, chance.uniform(0.05, 0.95) * n)
            _resume(batch_id, environment)
            counted = _counters(url)
            extra = int(counted["received"]) - n
            lost += _not_once(Path(home), batch_id, n)
            repeated += extra
            worst = max(worst, extra)
    world.samples["kills"] = {"all": [{"lost": lost, "repeated": repeated, "worst": worst}]}
    allowed = 64 + FLUSH_S * 64 / 0.05
    yield Row("requests without exactly one result line after 10 kills", lost, most=0)
    yield Row("requests repeated, the worst of 10 kills", worst, most=allowed)


def _killed(path: Path, environment: dict[str, str], url: str, at: float) -> str:
    run = _run(["--local", str(path)], environment)
    while run.poll() is None and _counters(url)["received"] < at:
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    (batch,) = (Path(environment["BATCHLINE_HOME"]) / "storage" / "batches").iterdir()
    return batch.name


def _resume(batch_id: str, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if _run(["--local", "--resume", batch_id], environment).wait() == 0:
            return
        time.sleep(0.2)
    raise TimeoutError(f"batch {batch_id} was not resumed")


def _not_once(home: Path, batch_id: str, requests: int) -> int:
    """How many requests have not exactly one result line."""
    folder = home / "storage" / "batches" / batch_id
    counts = dict.fromkeys((f"r-{number}" for number in range(requests)), 0)
    for name in ("output.jsonl", "errors.jsonl"):
        if (folder / name).exists():
            for line in (folder / name).read_bytes().splitlines():
                counts[json.loads(line)["custom_id"]] += 1
    return sum(count != 1 for count in counts.values())


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("batchline")), "run", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)


def _counters(url: str) -> dict[str, float]:
    counted: dict[str, float] = httpx.get(f"{url.removesuffix('/v1')}/simulator/counters").json()
    return counted

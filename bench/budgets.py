"""Figures of caps that processes share: what sharing costs, and how much of a cap is used by several together."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.figures import Row
from bench.measuring import Run, compare, server_cpu_s
from bench.servers import stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measuring import World

REQUESTS_A_MINUTE = 3_000
ROUNDS = 7
IDLE_S = 30.0


def cost(world: World) -> Iterator[Row]:
    """A flow with shared caps and without, 50,000 requests to an upstream without latency."""
    n = world.count(50_000)
    runs = {
        name: Run("flow", n, environment={"BATCHLINE_SHARE_BUDGETS": value})
        for name, value in {"alone": "false", "shared": "true"}.items()
    }
    got = compare(world, "sharing_cost", runs, rounds=ROUNDS)
    for figure, name in {"cpu_s": "CPU", "wall_s": "wall time"}.items():
        added = 100 * (got["shared"][figure] / got["alone"][figure] - 1)
        yield Row(f"{name} that sharing adds to a flow, {n:,}", added, most=1, unit="%")


def caps(world: World) -> Iterator[Row]:
    """Requests a minute that one, two and four processes make together, and what Prefect's server has to do."""
    idle = _cpu_of_server(world, partial(time.sleep, IDLE_S)) / IDLE_S
    for processes in (1, 2, 4):
        requests = world.count(9_000) // processes
        with stand_in(latency="lognormal", latency_s=0.3) as url:
            began = time.monotonic()
            cpu_s = _cpu_of_server(world, partial(_send, world, url, processes, requests))
            wall_s = time.monotonic() - began
        starts = [np.sort(np.load(_starts(world, number))) for number in range(processes)]
        worst, used = _worst(np.sort(np.concatenate(starts))), _used(starts)
        world.samples.setdefault("shared_caps", {})[str(processes)] = [{"worst": worst, "used": used}]
        words = f"{processes} process{'es' if processes > 1 else ''}"
        yield Row(f"requests above a shared cap in the worst minute, {words}", worst, most=1, unit="%")
        yield Row(f"share of a shared cap that is used, {words}", used, least=97, unit="%")
        each = 100 * (cpu_s / wall_s - idle) / processes
        yield Row(f"CPU of Prefect's server for each of {words}", each, unit="%")


def _send(world: World, url: str, processes: int, requests: int) -> None:
    """Have so many processes send so many requests each."""
    started = []
    for number in range(processes):
        upstream = {"name": f"of-{processes}", "requests_per_minute": REQUESTS_A_MINUTE, "max_in_flight": 256}
        options = {
            "file": str(world.file(2_000)),
            "requests": requests,
            "base_url": url,
            "upstream": upstream,
            "starts": str(_starts(world, number)),
        }
        command = [sys.executable, "-m", "bench.subjects", "sharing", json.dumps(options)]
        started.append(subprocess.Popen(command, env=world.environment, stdout=subprocess.DEVNULL))
    if codes := [code for process in started if (code := process.wait())]:
        raise RuntimeError(f"{len(codes)} of {processes} processes failed")


def _starts(world: World, number: int) -> Path:
    return world.home / f"starts-{number}.npy"


def _worst(starts: np.ndarray) -> float:
    """By how many per cent the worst sliding minute is above the cap."""
    behind = np.searchsorted(starts, starts + 60.0)
    return float(100 * ((behind - np.arange(len(starts))).max() / REQUESTS_A_MINUTE - 1))


def _used(starts: list[np.ndarray]) -> float:
    """Per cent of the cap that is used from when all have begun until the first is done."""
    begin, end = max(each[0] for each in starts), min(each[-1] for each in starts)
    together = sum(int(((each >= begin) & (each <= end)).sum()) for each in starts)
    return float(100 * together / (REQUESTS_A_MINUTE * (end - begin) / 60))


def _cpu_of_server(world: World, work: Callable[[], None]) -> float:
    """CPU seconds that Prefect's server takes during the work."""
    before = server_cpu_s(world)
    work()
    return server_cpu_s(world) - before

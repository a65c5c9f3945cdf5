"""Figures of more than one process: what they add, and what each batch costs Prefect's server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bench.figures import Row
from bench.measuring import Run, compare, measure, server_cpu_s
from bench.servers import stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measuring import World

ALONE = {"BATCHLINE_SHARE_BUDGETS": "false"}
"""Each process may have as many requests under way as it likes."""

RUNNING = 8


def processes(world: World) -> Iterator[Row]:
    """Requests/s of a batch that one, two and four Dask workers send, each 64 at once, answered in 500 ms."""
    count = world.count(8_000)
    with stand_in(latency_s=0.5) as url:
        runs = {
            f"{number}": Run(
                "flow",
                count,
                base_url=url,
                environment={
                    **ALONE,
                    "OPENAI_BASE_URL": url,  # the workers are told by their environment
                    "BATCHLINE_TASK_RUNNER": "dask",
                    "BATCHLINE_PROCESSES": str(number),
                },
            )
            for number in (1, 2, 4)
        }
        runs["threads"] = Run("flow", count, base_url=url, environment=ALONE)
        found = compare(world, "processes", runs, rounds=1)
    rates = {name: count / (each["wall_s"] - each["outside_s"]) for name, each in found.items()}
    yield Row("requests/s while sending: 1 Dask worker / the flow's own threads", rates["1"] / rates["threads"])
    yield Row("2 Dask workers / 1", rates["2"] / rates["1"], least=1.9)
    yield Row("4 Dask workers / 1", rates["4"] / rates["1"], least=3.6)
    yield Row("before and after sending, of a batch on 4 Dask workers", found["4"]["outside_s"], unit=" s")


def prefect_cost(world: World) -> Iterator[Row]:
    """CPU seconds of Prefect's server: of a batch of 50,000, and of batches that run for long."""
    taken = []
    for _ in range(3):
        idle = _idle_cpu_s(world)
        before, began = server_cpu_s(world), time.monotonic()
        measure(world, Run("flow", world.count(50_000)))
        taken.append(server_cpu_s(world) - before - idle * (time.monotonic() - began))
    world.samples["prefect_cost"] = {"of 50,000": [{"cpu_s": each} for each in taken]}
    yield Row("CPU of Prefect's server for a batch of 50,000", sorted(taken)[1], unit=" s")
    share = _share_of_running(world)
    world.samples["prefect_cost"]["running"] = [{"cpu": share}]
    yield Row("CPU of Prefect's server for a batch that runs, of a core", share)
    yield Row("batches running at once that take half a core of it", 0.5 / share)


def _share_of_running(world: World) -> float:
    """What of a core one of several batches takes that are in the midst of sending."""
    seconds = 20 if world.quick else 60
    with stand_in(latency_s=1.0) as url, ThreadPoolExecutor(RUNNING) as pool:
        idle = _idle_cpu_s(world)
        run = Run("flow", 64 * (seconds + 40), base_url=url, environment=ALONE)
        world.file(run.requests)
        ending = [pool.submit(measure, world, run) for _ in range(RUNNING)]
        time.sleep(25)  # they are all sending by then
        before, began = server_cpu_s(world), time.monotonic()
        time.sleep(seconds)
        taken, passed = server_cpu_s(world) - before, time.monotonic() - began
        for each in ending:
            each.result()
    return (taken / passed - idle) / RUNNING


def _idle_cpu_s(world: World) -> float:
    """CPU seconds a second of the server without anything to do."""
    before = server_cpu_s(world)
    time.sleep(10)
    return (server_cpu_s(world) - before) / 10

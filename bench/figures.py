"""The figures and their bars: each takes a world and gives rows for the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.measuring import Run, compare
from bench.servers import s3_server, stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measuring import Sample, World


@dataclass(frozen=True)
class Row:
    """One figure: what it is, what came out, and what it should be at least or at most; no bar if only told."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most


def _added(flow: Sample, local: Sample) -> float:
    """Per cent of wall time that Prefect adds."""
    return 100 * (flow["wall_s"] / local["wall_s"] - 1)


def throughput_50k(world: World) -> Iterator[Row]:
    """A flow against the bare loop and the peers, 50,000 requests."""
    n = world.count(50_000)
    runs = {
        "pyreqwest": Run("pyreqwest", n),
        "own": Run("own", n),
        "local": Run("local", n),
        "flow": Run("flow", n),
        "calm": Run("calm", n),
        "flexllm": Run("flexllm", world.count(10_000)),
        "httpx": Run("httpx", 2_000),
    }
    got = compare(world, "throughput_50k", runs, rounds=3)
    flow, local = got["flow"], got["local"]
    yield Row(f"flow / bare loop on pyreqwest, {n:,}", flow["rate"] / got["pyreqwest"]["rate"], least=0.60)
    yield Row(f"flow / bare loop on our own transport, {n:,}", flow["rate"] / got["own"]["rate"])
    yield Row("flow / flexllm 0.17", flow["rate"] / got["flexllm"]["rate"], least=8)
    yield Row("flow / httpx, default pool", flow["rate"] / got["httpx"]["rate"], least=30)
    yield Row(f"wall time that Prefect adds, {n:,}", _added(flow, local), most=20, unit="%")
    yield Row(f"the same without its heartbeats, {n:,}", _added(got["calm"], local), unit="%")


def throughput_500k(world: World) -> Iterator[Row]:
    """The same at 500,000, with the CPU."""
    n = world.count(500_000)
    runs = {name: Run(name, n) for name in ("pyreqwest", "own", "local", "flow", "calm")}
    got = compare(world, "throughput_500k", runs, rounds=3)
    flow, local, pyreqwest, own = got["flow"], got["local"], got["pyreqwest"], got["own"]
    yield Row(f"flow / bare loop on pyreqwest, {n:,}", flow["rate"] / pyreqwest["rate"], least=0.70)
    yield Row(f"flow / bare loop on our own transport, {n:,}", flow["rate"] / own["rate"])
    yield Row(f"CPU of flow / bare loop on pyreqwest, {n:,}", flow["cpu_s"] / pyreqwest["cpu_s"], most=1.5)
    yield Row(f"CPU of flow / bare loop on our own transport, {n:,}", flow["cpu_s"] / own["cpu_s"])
    yield Row(f"wall time that Prefect adds, {n:,}", _added(flow, local), most=5, unit="%")
    yield Row(f"the same without its heartbeats, {n:,}", _added(got["calm"], local), unit="%")


def fixed_latency(world: World) -> Iterator[Row]:
    """500 ms, 256 in flight."""
    n = world.count(10_000)
    with stand_in(latency="fixed", latency_s=0.5) as url:
        got = compare(world, "fixed_latency", {"local": Run("local", n, 256, url)}, rounds=3)
    yield Row(
        "share of the possible 512 requests/s at 500 ms, 256 in flight", got["local"]["rate"] / 512, least=0.93
    )


def lognormal_latency(world: World) -> Iterator[Row]:
    """Median 0.5 s, sigma 1, 256 in flight."""
    n = world.count(20_000)
    with stand_in(latency="lognormal", latency_s=0.5, latency_sigma=1.0) as url:
        runs = {name: Run(name, n, 256, url) for name in ("own", "local", "flow")}
        got = compare(world, "lognormal_latency", runs, rounds=1 if world.quick else 3)
    local, flow = got["local"], got["flow"]
    yield Row("log-normal: makespan of the bare loop / ours", got["own"]["wall_s"] / local["wall_s"], least=0.97)
    yield Row("log-normal: mean in flight until the last 256", local["mean_in_flight"], least=250)
    # The longest latencies fall where they fall, so that makespans differ by more than Prefect can add.
    added_s = flow["outside_s"] - local["outside_s"]
    yield Row("log-normal: wall time that Prefect adds", 100 * added_s / local["wall_s"], most=2, unit="%")
    yield Row("log-normal: makespan of flow / local", flow["wall_s"] / local["wall_s"])


def stray_refusals(world: World) -> Iterator[Row]:
    """One 429 in 50, and one in 200 that asks to wait a second, against none; 250 ms, 64 in flight."""
    n = world.count(6_000)
    with (
        stand_in(latency_s=0.25) as well,
        stand_in(latency_s=0.25, rate_limited=0.02, retry_after="none") as often,
        stand_in(latency_s=0.25, rate_limited=0.005, retry_after_s=1.0) as waiting,
    ):
        urls = {"none": well, "1 in 50": often, "1 in 200": waiting}
        got = compare(
            world, "stray_refusals", {name: Run("local", n, 64, url) for name, url in urls.items()}, rounds=3
        )
    none = got["none"]["rate"]
    yield Row("throughput with one 429 in 50 / without", got["1 in 50"]["rate"] / none, least=0.85)
    yield Row("with one in 200 that asks to wait a second / without", got["1 in 200"]["rate"] / none, least=0.85)


def memory(world: World) -> Iterator[Row]:
    """Peak resident memory at 1,000,000 requests and at 50,000, Prefect and pandas loaded."""
    small, large = world.count(50_000), world.count(1_000_000)
    got = compare(world, "memory", {"small": Run("flow", small), "large": Run("flow", large)}, rounds=1)
    yield Row(f"peak memory, {large:,} / {small:,}", got["large"]["peak_mb"] / got["small"]["peak_mb"], most=1.5)
    yield Row(f"peak memory, {large:,}", got["large"]["peak_mb"], most=400, unit=" MB")


def validation(world: World) -> Iterator[Row]:
    """Megabytes of input checked a CPU second."""
    got = compare(world, "validation", {"validation": Run("validation", world.count(200_000))}, rounds=5)
    figures = got["validation"]
    yield Row("validation, MB a CPU second", figures["megabytes"] / figures["cpu_s"], least=200)


def s3(world: World) -> Iterator[Row]:
    """The same batch with its storage on a local S3 server and on local disk."""
    n = world.count(100_000)
    with s3_server(world.home) as environment:
        runs = {"disk": Run("local", n), "s3": Run("local", n, environment=environment)}
        got = compare(world, "s3", runs, rounds=3)
    yield Row(f"storage on S3 / on disk, {n:,}", got["s3"]["rate"] / got["disk"]["rate"], least=0.8)

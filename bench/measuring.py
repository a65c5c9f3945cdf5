"""Runs subjects in turn and gathers what they print."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

Sample = dict[str, float]
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "jetty",
    "knoll",
    "marsh",
)


@dataclass
class World:
    """The setting of benchmarks: a directory, the servers' addresses, amounts, durations and all samples."""

    home: Path
    base_url: str
    prefect_url: str
    quick: bool
    refuse_for_s: float = 600.0
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def count(self, requests: int) -> int:
        """So many requests, or a tenth in a quick run."""
        return max(2_000, requests // 10) if self.quick else requests

    def file(self, requests: int) -> Path:
        """A file of so many chat requests of about 500 bytes, made once."""
        path = self.home / f"requests-{requests}.jsonl"
        if not path.exists():
            chance = random.Random(requests)
            with path.open("w") as file:
                for number in range(requests):
                    file.write(_line(number, chance) + "\n")
        return path

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of every subject."""
        return {
            **os.environ,
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_HOME": str(self.home / "prefect"),
        }


@dataclass(frozen=True)
class Run:
    """A subject with its options."""

    subject: str
    requests: int
    in_flight: int = 64
    base_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def compare(world: World, figure: str, runs: Mapping[str, Run], *, rounds: int) -> dict[str, Sample]:
    """Run each in turn, so many rounds; the medians of what each printed."""
    kept: dict[str, list[Sample]] = world.samples.setdefault(figure, {})
    for number in range(rounds):
        for name, run in runs.items():
            sample = measure(world, run)
            kept.setdefault(name, []).append(sample)
            rate = run.requests / sample["wall_s"]
            print(f"    {figure} {number + 1}/{rounds} {name}: {rate:,.0f} requests/s", file=sys.stderr)
    return {name: medians(samples) for name, samples in kept.items()}


def measure(world: World, run: Run) -> Sample:
    """One run in a process and a home of its own."""
    options = {
        "file": str(world.file(run.requests)),
        "requests": run.requests,
        "in_flight": run.in_flight,
        "base_url": run.base_url or world.base_url,
    }
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        environment = {**world.environment, "BATCHLINE_HOME": home, **run.environment}
        command = [sys.executable, "-m", "bench.subjects", run.subject, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{run.subject} failed:\n{done.stderr[-4_000:]}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    if sample.get("ok", run.requests) != run.requests:
        raise RuntimeError(f"{run.subject}: {sample['ok']} of {run.requests} requests succeeded")
    return sample


def medians(samples: Sequence[Sample]) -> Sample:
    """The median of each figure, and the rate of the median run."""
    names = {name for sample in samples for name in sample}
    middle = {name: statistics.median(sample[name] for sample in samples if name in sample) for name in names}
    return {**middle, "rate": middle["requests"] / middle["wall_s"]}


def _line(number: int, chance: random.Random) -> str:
    prompt = " ".join(chance.choices(WORDS, k=52))
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        "max_tokens": 100,
    }
    line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line)


def server_cpu_s(world: World) -> float:
    """CPU seconds of the processes that were started to listen on the port of Prefect's server."""
    port, taken = str(urlsplit(world.prefect_url).port).encode(), 0.0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if port in (place / "cmdline").read_bytes().split(b"\0"):
                taken += cpu_s(int(place.name))
        except OSError:
            continue
    return taken


def cpu_s(process: int) -> float:
    """CPU seconds that the process has taken, user and system; raises `OSError` where there is none."""
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_children_s(process: int) -> float:
    """Return the CPU seconds of the process's children, those that have ended included."""
    taken = sum(map(int, _stat(process)[13:15])) / os.sysconf("SC_CLK_TCK")
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if parent_of(int(place.name)) == process:
                taken += cpu_s(int(place.name))
        except OSError:  # it has ended meanwhile
            continue
    return taken


def parent_of(process: int) -> int:
    """Return the id of the process's parent; raises `OSError` if there is no such process."""
    return int(_stat(process)[1])


def _stat(process: int) -> list[str]:
    """Return the fields that follow the process's name in Linux' `stat`."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()

"""Figures of the HTTP API: polling, pages of lists, uploads against the storage, how soon a batch begins."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from batchline import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.models.api_keys import Role
from batchline.models.settings import Settings, load_settings
from batchline.simulate import Simulator
from batchline.storage.records.database import open_database
from batchline.storage.records.store import upgrade_database
from bench.figures import Row
from bench.lists import finished_batches, insert_at_once, queries, settle
from bench.measuring import Run, cpu_s, measure
from bench.servers import postgres_server, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.measuring import Sample, World

BATCHES: Final = 100_000
CLIENTS: Final = 200
POLL_S: Final = 1.0
POLLS: Final = 30
"""Polls of each client."""

PAGES: Final = 40
"""Pages of each list."""

MOST_P99_MS: Final = 300
MOST_CORES: Final = 1
MOST_P95_MS: Final = 100
ROUNDS: Final = 5
UPLOAD_REQUESTS: Final = 400_000
"""In a file of some 200 MB."""

NOBODY: Final = "http://127.0.0.1:9/v1"


class Poller(NamedTuple):
    """A client that polls a batch: its key, and the path of the batch."""

    token: str
    path: str


def api_reads(world: World) -> Iterator[Row]:
    """Latency of polls and of pages of lists, with many batches on record, on both databases."""
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        yield from _reads(world, "SQLite", {"BATCHLINE_HOME": home})
    with postgres_server() as url, tempfile.TemporaryDirectory(dir=world.home) as home:
        upgrade_database(load_settings(database_url=url))
        yield from _reads(world, "PostgreSQL", {"BATCHLINE_HOME": home, "BATCHLINE_DATABASE_URL": url})


def _reads(world: World, name: str, environment: dict[str, str]) -> Iterator[Row]:
    settings, count = _settings(environment), world.count(BATCHES)
    with Batchline(settings) as client:
        manager = _key(client, "manager", role="manager")
        keys = [_key(client, f"client {number}") for number in range(CLIENTS)]
    ids = _fill(settings, count, [key.member_id for key in keys])
    pollers = [Poller(key.token, f"/batches/{each}") for key, each in zip(keys, ids[-CLIENTS:], strict=True)]
    with _served(environment | {"OPENAI_BASE_URL": NOBODY}) as (url, server):
        for when, spread_s, most_ms in (("", POLL_S, MOST_P99_MS), (" at the same moment", 0.0, None)):
            figure = f"{CLIENTS} clients poll a batch a second{when}, {name}"
            before, began = cpu_s(server), time.perf_counter()
            took_ms = asyncio.run(_polled(url, pollers, spread_s))
            cores = (cpu_s(server) - before) / (time.perf_counter() - began)
            sample = {**_summary(took_ms), "cores": cores}
            world.samples[figure] = {"ours": [sample]}
            yield Row(f"{figure}: p99", sample["p99_ms"], most=most_ms, unit=" ms")
            yield Row(f"{figure}: CPU", cores, most=MOST_CORES, unit=" cores")
        yield from _pages(world, f"{name}, {count:,} batches: GET a page of 100", url, manager, ids)


async def _polled(url: str, pollers: Sequence[Poller], spread_s: float) -> list[float]:
    """Return the milliseconds of each poll; once all are connected, the clients begin within `spread_s`."""
    chance, connected = random.Random(0), asyncio.Barrier(len(pollers))
    async with asyncio.TaskGroup() as group:
        polls = [
            group.create_task(_poll(url, poller, connected, chance.uniform(0, spread_s))) for poller in pollers
        ]
    return [taken for each in polls for taken in each.result()]


async def _poll(url: str, poller: Poller, connected: asyncio.Barrier, begin_s: float) -> list[float]:
    """Poll over a plain socket: an HTTP library would need the core that the server is to have."""
    parts, took_ms = urlsplit(url), []
    request = (
        f"GET {parts.path}{poller.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {poller.token}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    await _answered(reader, writer, request)
    await connected.wait()
    begin = time.perf_counter() + begin_s
    for number in range(POLLS):
        await asyncio.sleep(max(0.0, begin + number * POLL_S - time.perf_counter()))
        began = time.perf_counter()
        await _answered(reader, writer, request)
        took_ms.append((time.perf_counter() - began) * 1_000)
    writer.close()
    return took_ms


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode())
    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))


def _pages(world: World, figure: str, url: str, manager: Key, ids: list[str]) -> Iterator[Row]:
    """The 95th percentile of a page for every filter but a search, and of the worst of them."""
    asked = {name: query for name, query in queries(ids).items() if query.search is None}
    headers, samples = {"Authorization": f"Bearer {manager.token}"}, {}
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as http:
        for name, query in asked.items():
            parameters = query.model_dump(mode="json", exclude_defaults=True)
            took_ms = []
            for _ in range(PAGES):
                began = time.perf_counter()
                http.get(f"{url}/batches", params=parameters).raise_for_status()
                took_ms.append((time.perf_counter() - began) * 1_000)
            samples[name] = _summary(took_ms)
            print(f"    {figure}: {name}: {samples[name]['p95_ms']:.1f} ms", file=sys.stderr)
    world.samples[figure] = {name: [sample] for name, sample in samples.items()}
    worst = max(samples, key=lambda name: samples[name]["p95_ms"])
    middle = statistics.median(sample["p95_ms"] for sample in samples.values())
    yield Row(f"{figure}, worst p95 ({worst})", samples[worst]["p95_ms"], most=MOST_P95_MS, unit=" ms")
    yield Row(f"{figure}, the middle of {len(samples)} lists", middle, unit=" ms")


def _summary(took_ms: Sequence[float]) -> Sample:
    points = statistics.quantiles(took_ms, n=100)
    return {"median_ms": points[49], "p95_ms": points[94], "p99_ms": points[98], "max_ms": max(took_ms)}


def _interleaved(world: World, figure: str, measures: Mapping[str, Callable[[], Sample]]) -> dict[str, Sample]:
    """Take each in turn, so many rounds after one that does not count; the medians."""
    samples: dict[str, list[Sample]] = {name: [] for name in measures}
    for number in range((2 if world.quick else ROUNDS) + 1):
        for name, once in measures.items():
            sample = once()
            if number:
                samples[name].append(sample)
                print(f"    {figure}, {name}: {sample['rate']:,.0f}", file=sys.stderr)
    world.samples[figure] = samples
    return {
        name: {key: statistics.median(sample[key] for sample in some) for key in some[0]}
        for name, some in samples.items()
    }


# What is on record


def _settings(environment: Mapping[str, str]) -> Settings:
    return load_settings(
        home=Path(environment["BATCHLINE_HOME"]), database_url=environment.get("BATCHLINE_DATABASE_URL", "")
    )


class Key(NamedTuple):
    """A member's key."""

    token: str
    member_id: str


def _key(client: Batchline, name: str, role: Role = "member") -> Key:
    made = ApiKeys(client).create(name, role=role)
    if made.token is None:
        raise RuntimeError("the key has no token")
    return Key(made.token, made.member.id)


def _fill(settings: Settings, count: int, members: Sequence[str]) -> list[str]:
    """Record batches that are over, the newest of them one of each member. Their ids, oldest first."""
    made = list(finished_batches(count))
    for number, member_id in enumerate(members, count - len(members)):
        made[number] = msgspec.structs.replace(made[number], member_id=member_id)
    engine = open_database(settings)
    insert_at_once(engine, made)
    engine.dispose()
    settle(settings)
    return [batch.id for batch in made]


# Servers


@contextmanager
def _served(environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """`batchline serve` in that environment; its URL and its process."""
    command = [sys.executable, "-c", "from batchline.cli import main; main()", "serve", "--port", "0"]
    server = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        told = server.stderr.readline() if server.stderr else ""
        if "serving at " not in told:
            raise RuntimeError(f"the server did not start: {told}")
        yield told.partition("serving at ")[2].strip(), server.pid
    finally:
        server.kill()
        server.wait()


# Uploads


def api_uploads(world: World) -> Iterator[Row]:
    """MB a second of an upload, against writing the same bytes to the same storage."""
    requests = world.count(UPLOAD_REQUESTS)
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        yield from _uploads(world, "disk", requests, {"BATCHLINE_HOME": home})
    with tempfile.TemporaryDirectory(dir=world.home) as home, s3_server(Path(home)) as environment:
        yield from _uploads(world, "S3", requests, {"BATCHLINE_HOME": home, **environment})


def _uploads(world: World, name: str, requests: int, environment: dict[str, str]) -> Iterator[Row]:
    path = world.file(requests)
    with Batchline(load_settings(home=Path(environment["BATCHLINE_HOME"]))) as client:
        key = _key(client, "bench")
    size, run = path.stat().st_size, Run("written", requests, environment=environment)
    with _served(environment | {"OPENAI_BASE_URL": NOBODY}) as (url, _):
        measures: dict[str, Callable[[], Sample]] = {
            "ours": lambda: {"rate": _upload(url, key, path)},
            "plain": lambda: {"rate": size / 1e6 / measure(world, run)["wall_s"]},
        }
        got = _interleaved(world, f"upload to {name}", measures)
    ours, plain = (got[each]["rate"] for each in measures)
    yield Row(f"upload of {size / 1e6:,.0f} MB to {name}", ours, unit=" MB/s")
    yield Row(f"upload to {name}: MB/s / writing the same there", ours / plain, least=0.5)


def _upload(url: str, key: Key, path: Path) -> float:
    """Send the file as a form, as fast as the server takes it."""
    boundary, parts = "a-boundary", urlsplit(url)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\n'
    head += 'Content-Disposition: form-data; name="file"; filename="requests.jsonl"\r\n\r\n'
    tail, size = f"\r\n--{boundary}--\r\n", path.stat().st_size
    request = (
        f"POST {parts.path}/files HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key.token}\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary}\r\nConnection: close\r\n"
        f"Content-Length: {len(head) + size + len(tail)}\r\n\r\n{head}"
    )
    began = time.perf_counter()
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection, path.open("rb") as file:
        connection.sendall(request.encode())
        connection.sendfile(file)
        connection.sendall(tail.encode())
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    taken = time.perf_counter() - began
    made = json.loads(answer.partition(b"\r\n\r\n")[2])
    if made.get("bytes") != size:
        raise RuntimeError(answer.decode())
    return size / 1e6 / taken


# How soon


def api_start(world: World) -> Iterator[Row]:
    """Seconds from asking for a batch to the first request that the upstream gets."""
    for requests in (100, 50_000):
        with (
            tempfile.TemporaryDirectory(dir=world.home) as home,
            Simulator() as upstream,
            _served({"BATCHLINE_HOME": home, "OPENAI_BASE_URL": upstream.base_url}) as (url, _),
            httpx.Client(trust_env=False, timeout=60) as client,
        ):
            with world.file(requests).open("rb") as file:
                made = client.post(f"{url}/files", files={"file": file}, data={"purpose": "batch"}).json()
            taken = [_start_s(client, url, made["id"], upstream) for _ in range(ROUNDS)]
        world.samples[f"create to first request, {requests:,}"] = {"ours": [{"seconds": each} for each in taken]}
        yield Row(
            f"create to the first request at the upstream, {requests:,}", statistics.median(taken), unit=" s"
        )


def _start_s(client: httpx.Client, url: str, file_id: str, upstream: Simulator) -> float:
    upstream.reset()
    began = time.perf_counter()
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    batch = client.post(f"{url}/batches", json=body).raise_for_status().json()
    while not upstream.counters()["received"]:
        time.sleep(0.001)
    taken = time.perf_counter() - began
    while client.get(f"{url}/batches/{batch['id']}").json()["status"] != "completed":
        time.sleep(0.1)
    return taken

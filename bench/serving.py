"""Figures of the HTTP API: reads against a bare route, uploads against the storage, how soon a batch begins."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from batchline import Batchline
from batchline.models.settings import Settings, load_settings
from batchline.operations.keys import Keys
from batchline.simulate import Simulator
from batchline.storage.records import upgrade_database
from bench.figures import Row
from bench.lists import finished_batches, settle
from bench.measuring import Run, cpu_s, measure
from bench.servers import postgres_server, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.measuring import Sample, World

BATCHES: Final = 1_000
ROUNDS: Final = 5
CONNECTIONS: Final = 32
SECONDS: Final = 3
UPLOAD_REQUESTS: Final = 400_000
"""In a file of some 200 MB."""

NOBODY: Final = "http://127.0.0.1:9/v1"


class Page(NamedTuple):
    """What is asked for, the least of a bare route's rate, and whether by one member or by many in turn."""

    query: str
    least: float | None
    is_of_many: bool = False


PAGES: Final = {
    "a batch": Page("", 0.5),
    "a list of 20": Page("?limit=20", 0.5),
    "a list of 20 of each member": Page("?limit=20", None, is_of_many=True),
    "a list of 100": Page("?limit=100", None),
}
MEMBERS: Final = 32


class Key(NamedTuple):
    """A member's key."""

    token: str
    member_id: str


def api_reads(world: World) -> Iterator[Row]:
    """Requests a second of GET, with a key, against a bare FastAPI route that returns the same bytes."""
    with tempfile.TemporaryDirectory(dir=world.home) as home:
        yield from _reads(world, "SQLite", {"BATCHLINE_HOME": home})
    with postgres_server() as url, tempfile.TemporaryDirectory(dir=world.home) as home:
        upgrade_database(load_settings(database_url=url))
        yield from _reads(world, "PostgreSQL", {"BATCHLINE_HOME": home, "BATCHLINE_DATABASE_URL": url})


def _reads(world: World, name: str, environment: dict[str, str]) -> Iterator[Row]:
    settings = _settings(environment)
    key, *others = keys = [_key(settings) for _ in range(MEMBERS)]
    newest = _fill(settings, key, others)
    with ExitStack() as stack:
        url, ours = stack.enter_context(_served(environment | {"OPENAI_BASE_URL": NOBODY}))
        paths = {name: f"batches{page.query or '/' + newest}" for name, page in PAGES.items()}
        answers = {page: _got(f"{url}/{path}", key) for page, path in paths.items()}
        bare_url, bare = stack.enter_context(_bare(world.home, answers))
        for page, path in paths.items():
            bare_path = f"{bare_url}/{_file_name(page)}"
            if _got(bare_path, key) != answers[page]:
                raise RuntimeError(f"the bare route gives another body for {page}")
            asking = keys if PAGES[page].is_of_many else [key]
            measures = {
                "ours": _load(world.home, f"{url}/{path}", asking, ours),
                "bare": _load(world.home, bare_path, asking, bare),
            }
            got = _interleaved(world, f"GET {page}, {name}", measures)
            ratio, cpu = (got["ours"][each] / got["bare"][each] for each in ("rate", "cpu_us"))
            yield Row(f"GET {page}, {name}", got["ours"]["rate"], unit="/s")
            yield Row(f"GET {page}, {name}: requests/s / a bare route's", ratio, least=PAGES[page].least)
            yield Row(f"GET {page}, {name}: CPU of a request / a bare one's", cpu)


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


IN_TURN: Final = """
local turn = 0
request = function()
  turn = turn % #keys + 1
  return wrk.format("GET", nil, {["Authorization"] = "Bearer " .. keys[turn]})
end
"""
"""For wrk: requests with each of the keys in turn."""


def _load(home: Path, url: str, keys: Sequence[Key], server: int) -> Callable[[], Sample]:
    """Requests a second that the server answers, every one with a 200, and the CPU that it takes for each."""
    script = Path(home, f"keys-{len(keys)}.lua")
    script.write_text(f"local keys = {{{', '.join(json.dumps(key.token) for key in keys)}}}\n{IN_TURN}")
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), url]

    def loaded() -> Sample:
        before = cpu_s(server)
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in told or "Socket errors" in told:
            raise RuntimeError(told)
        taken_s = cpu_s(server) - before
        rate, count = (re.search(pattern, told) for pattern in (r"Requests/sec:\s+([\d.]+)", r"(\d+) requests in"))
        if rate is None or count is None:
            raise RuntimeError(told)
        return {"rate": float(rate[1]), "cpu_us": 1e6 * taken_s / int(count[1])}

    return loaded


def _got(url: str, key: Key) -> bytes:
    answer = httpx.get(url, headers={"Authorization": f"Bearer {key.token}"}, trust_env=False)
    answer.raise_for_status()
    return answer.content


# What is on record


def _settings(environment: Mapping[str, str]) -> Settings:
    return load_settings(
        home=Path(environment["BATCHLINE_HOME"]), database_url=environment.get("BATCHLINE_DATABASE_URL", "")
    )


def _key(settings: Settings) -> Key:
    with Batchline(settings) as client:
        made = Keys(client).create("bench")
    if made.token is None:
        raise RuntimeError("the key has no token")
    return Key(made.token, made.member.id)


def _fill(settings: Settings, key: Key, others: Sequence[Key]) -> str:
    """Record batches that are over, most of the key's member, some of each other's; the newest of the former."""
    with Batchline(settings) as client:
        members = [other.member_id for other in others for _ in range(30)] + [key.member_id] * BATCHES
        for member_id, batch in zip(members, finished_batches(len(members)), strict=True):
            client.engine.records.add_batch(msgspec.structs.replace(batch, member_id=member_id))
        newest = client.batches.list(limit=1).data[0].id
    settle(settings)
    return newest


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


@contextmanager
def _bare(home: Path, answers: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    """A FastAPI with a route that returns those bytes by name; its URL and its process."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        for name, data in answers.items():
            Path(folder, _file_name(name)).write_bytes(data)
        server = subprocess.Popen([sys.executable, "-m", "bench.bare", folder], stdout=subprocess.PIPE, text=True)
        try:
            yield server.stdout.readline().strip() if server.stdout else "", server.pid
        finally:
            server.kill()
            server.wait()


def _file_name(page: str) -> str:
    return page.replace(" ", "-")


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
    key = _key(load_settings(home=Path(environment["BATCHLINE_HOME"])))
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

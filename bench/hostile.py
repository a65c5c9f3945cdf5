"""Measures what one member can do to the others: each attack runs while another member works.

Also run by `tests/system/test_hostile_members.py`, for a short time each.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import zstandard

from batchline import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.models.settings import load_settings
from batchline.simulate import Simulator, SimulatorOptions
from bench.figures import Row

if TYPE_CHECKING:
    from bench.measuring import World

SECONDS: Final = 20.0
"""Seconds that each attack lasts."""

SETTLE_S: Final = 2.0
MOST_MB: Final = 600
MOST_P95_S: Final = 1.0
CHAT: Final = "/v1/chat/completions"
LINE: Final = (
    '{"custom_id":"r-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"%s","messages":[%s]}}\n'
)
MESSAGE: Final = '{"role":"user","content":"tell me something about it"}'
GOOD: Final = "".join(LINE % (number, "m", MESSAGE) for number in range(20)).encode()


class Attacker:
    """A member with a key who means no good."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.over = threading.Event()
        self.http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )

    def ask(self, method: str, path: str, **options: object) -> httpx.Response | None:
        """Send a request, whatever comes of it."""
        with suppress(httpx.HTTPError):
            return self.http.request(method, f"{self.url}{path}", **options)  # type: ignore[arg-type]
        return None

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file; its id, empty if it was refused."""
        answer = self.ask("POST", "/files", files={"file": (name, content)}, data={"purpose": "batch"})
        return str(answer.json().get("id", "")) if answer is not None else ""

    def create(self, file_id: str) -> str:
        """Make a batch; its id, empty if it was refused."""
        answer = self.ask("POST", "/batches", json={"input_file_id": file_id, "endpoint": CHAT})
        return str(answer.json().get("id", "")) if answer is not None else ""

    def many(self, work: Callable[[int], object], at_once: int) -> None:
        """Do the work again and again, so often at once, until the attack is over."""

        def repeat(number: int) -> None:
            while not self.over.is_set():
                work(number)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(repeat, range(at_once)))

    def files(self, name: str, content: bytes) -> None:
        """Upload the file and make batches of it, four at once."""
        self.many(lambda _: self.create(self.upload(name, content)), 4)


def nothing(attacker: Attacker) -> None:
    """No attack, to compare with."""
    attacker.over.wait()


def model_names(attacker: Attacker) -> None:
    """Lines of which each names another model of 4 MB, compressed to almost nothing."""
    text = b"".join((LINE % (number, "m" * 4_000_000 + str(number), MESSAGE)).encode() for number in range(100))
    attacker.files("r.jsonl.gz", gzip.compress(text))


def zstd_windows(attacker: Attacker) -> None:
    """Small frames that ask for a window of 128 MiB."""
    options = zstandard.ZstdCompressionParameters(window_log=27)
    writer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    data = writer.compress(b"\n" * 2**28) + writer.flush()
    attacker.many(lambda _: attacker.upload("r.jsonl.zst", data), 24)


def zstd_bombs(attacker: Attacker) -> None:
    """Frames that grow thirty thousand times."""
    data = zstandard.ZstdCompressor(level=19).compress(b"\n" * 2**29)
    attacker.many(lambda _: attacker.upload("r.jsonl.zst", data), 24)


def trickling_uploads(attacker: Attacker) -> None:
    """Uploads that have begun and go on by a byte at a time."""
    host, _, port = attacker.url.removeprefix("http://").partition("/")[0].partition(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {attacker.token}\r\n"
        "Content-Length: 99999999\r\nContent-Type: multipart/form-data; boundary=XY\r\n\r\n"
        '--XY\r\nContent-Disposition: form-data; name="file"; filename="r.jsonl"\r\n\r\n'
    )
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(64)]
        for connection in connections:
            connection.sendall(head.encode() + b"\n" * 100_000)
        while not attacker.over.wait(1):
            for connection in connections:
                with suppress(OSError):
                    connection.sendall(b"\n")


def fuzzed_lines(attacker: Attacker) -> None:
    """300,000 lines with some bytes exchanged."""
    chance = random.Random(1)

    def fuzzed(number: int) -> bytes:
        line = bytearray((LINE % (number, "m", MESSAGE)).encode())
        for _ in range(3):
            at = chance.randrange(len(line) - 1)
            line[at : at + chance.randrange(3)] = bytes([chance.choice(b'"\\{},:0[]x\xff')])
        return bytes(line).replace(b"\n", b"") + b"\n"

    attacker.files("r.jsonl.gz", gzip.compress(b"".join(map(fuzzed, range(300_000))), 1))


def odd_json(attacker: Attacker) -> None:
    """Lines of 9 MB of brackets, of deep ones, and of escaped lone surrogates."""
    odd = ("[" + "[]," * 3_000_000 + "1]", "[" * 4_500_000 + "]" * 4_500_000, '"' + "\\ud800" * 1_500_000 + '"')
    text = "".join(LINE % (number, "m", each) for number, each in enumerate(odd * 4))
    attacker.files("r.jsonl.gz", gzip.compress(text.encode()))


def deep_lines(attacker: Attacker) -> None:
    """Lines that are 10,000 levels deep."""
    text = "".join(LINE % (number, "m", "[" * 10_000 + "]" * 10_000) for number in range(2_000))
    attacker.files("r.jsonl.gz", gzip.compress(text.encode()))


def foreign_lines(attacker: Attacker) -> None:
    """200,000 lines that lack everything."""
    line = b'{"id":"a","input":{"contents":[{"parts":[{"text":"hello there"}],"role":"user"}]}}\n'
    attacker.files("r.jsonl.gz", gzip.compress(GOOD[:200] + line * 200_000))


def searches(attacker: Attacker) -> None:
    """Searches of a large file that find nothing, and estimates of it."""
    text = "".join(LINE % (number, "m", MESSAGE * 1) for number in range(400_000))
    file_id = attacker.upload("r.jsonl.gz", gzip.compress(text.encode(), 1))
    paths = (f"/files/{file_id}/content?search=zzz&limit=1", f"/files/{file_id}/cost-estimate")
    attacker.many(lambda number: attacker.ask("GET", paths[number % 2]), 60)


def deletions(attacker: Attacker) -> None:
    """45 deletions of a batch that is being sent and whose answers take long."""

    def delete(_: int) -> None:
        batch_id = attacker.create(attacker.upload("r.jsonl", GOOD))
        with ThreadPoolExecutor(45) as pool:
            list(pool.map(lambda _: attacker.ask("DELETE", f"/batches/{batch_id}"), range(45)))

    attacker.many(delete, 2)


def odd_answers(attacker: Attacker) -> None:
    """Requests that the upstream answers with 9 MB of brackets, some of them as an error, with lone surrogates."""
    attacker.files("r.jsonl", GOOD)


def bulky_results(attacker: Attacker) -> None:
    """Results of requests whose bodies are 9 MB of brackets each, read by many at once."""
    text = "".join(LINE % (number, "m", f"{MESSAGE},[{'[],' * 3_000_000}1]") for number in range(4))
    batch_id = attacker.create(attacker.upload("r.jsonl.gz", gzip.compress(text.encode())))
    attacker.many(lambda _: attacker.ask("GET", f"/batches/{batch_id}/results?limit=2"), 20)


def readiness(attacker: Attacker) -> None:
    """Readiness, which needs no key, asked by many at once."""
    attacker.url = attacker.url.removesuffix("/v1")
    attacker.many(lambda _: attacker.ask("GET", "/readyz"), 50)


def stray_keys(attacker: Attacker) -> None:
    """Keys that nobody has, each another."""

    def ask(number: int) -> None:
        attacker.ask("GET", "/files", headers={"Authorization": f"Bearer bl-{number}-{random.random()}"})

    attacker.many(ask, 50)


def idle_connections(attacker: Attacker) -> None:
    """Three thousand connections on which nothing is sent, and more as they are closed."""
    host, _, port = attacker.url.removeprefix("http://").partition("/")[0].partition(":")
    with ExitStack() as stack:
        for _ in range(3_000):
            if attacker.over.is_set():
                break
            with suppress(OSError):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        attacker.over.wait()


ATTACKS: Final[tuple[Callable[[Attacker], None], ...]] = (
    nothing,
    model_names,
    zstd_windows,
    zstd_bombs,
    trickling_uploads,
    fuzzed_lines,
    odd_json,
    deep_lines,
    foreign_lines,
    searches,
    deletions,
    odd_answers,
    bulky_results,
    readiness,
    stray_keys,
    idle_connections,
)


# Servers


class _Odd(BaseHTTPRequestHandler):
    """Answers what fast parsers refuse, as long as anyone wants to know."""

    protocol_version = "HTTP/1.1"
    body: Final = b'{"choices":["\\ud800"],"usage":{"prompt_tokens":"?"},"x":[' + b"[]," * 3_000_000 + b"1]}"

    def do_POST(self) -> None:
        """Answer a request, every other one with an error."""
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(1.0)  # else the disk, to which answers are saved, is what others wait for
        self.send_response(random.choice((200, 400)))
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(self.body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def _upstream(attack: Callable[[Attacker], None]) -> Iterator[dict[str, str]]:
    """The environment that names an upstream: slow, or odd if the attack is about its answers."""
    if attack is not odd_answers:
        with Simulator(SimulatorOptions(latency_s=5.0)) as simulator:
            yield {"OPENAI_BASE_URL": simulator.base_url}
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:  # answers are held in memory while they are under way
            yield {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "BATCHLINE_MAX_IN_FLIGHT": "4"}
        finally:
            server.shutdown()
            thread.join()


# The other member


class Outcome(NamedTuple):
    """The waits of the other member meanwhile, and the server's peak of memory."""

    p95_s: float
    worst_s: float
    requests: int
    peak_mb: float


class Victim:
    """A member who works as members do, and measures how long each request takes."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )
        form = {"files": {"file": ("r.jsonl", GOOD)}, "data": {"purpose": "batch"}}
        self._file = self._http.post("/files", **form).raise_for_status().json()["id"]  # type: ignore[arg-type]
        body = {"input_file_id": self._file, "endpoint": CHAT}
        self._batch = self._http.post("/batches", json=body).raise_for_status().json()["id"]
        self._form = form

    def work(self, seconds: float) -> list[float]:
        """Return the seconds that each request took, for so many seconds; raises for one that was refused."""
        asks: tuple[Callable[[], httpx.Response], ...] = (
            lambda: self._http.get("/batches"),
            lambda: self._http.get(f"/batches/{self._batch}"),
            lambda: self._http.get("/files"),
            lambda: self._http.get(f"/files/{self._file}/content"),
            lambda: self._http.post("/files", **self._form),  # type: ignore[arg-type]
        )
        taken: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for ask in asks:
                began = time.perf_counter()
                ask().raise_for_status()
                taken.append(time.perf_counter() - began)
                time.sleep(0.02)
        return taken

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


@contextmanager
def served(home: Path, upstream: dict[str, str]) -> Iterator[tuple[str, int, list[str]]]:
    """`batchline serve` with two members; its URL, its process and their keys."""
    environment = {
        **os.environ,
        **upstream,
        "BATCHLINE_HOME": str(home),
        "BATCHLINE_GRACE_S": "2",
    }
    with Batchline(load_settings(home=home)) as client:
        keys = [str(ApiKeys(client).create(name).token) for name in ("mallory", "alice")]
    command = [sys.executable, "-c", "from batchline.cli import main; main()", "serve", "--port", "0"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield _address(home / "log", server), server.pid, keys
        finally:
            server.kill()
            server.wait()


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        told = log.read_text()
        if "serving at " in told:
            return told.partition("serving at ")[2].split()[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def suffer(attack: Callable[[Attacker], None], seconds: float) -> Outcome:
    """Run the attack for so many seconds against a new server, and tell what the other member met."""
    with (
        ThreadPoolExecutor(1) as attacking,  # which ends last, when no server holds it up any more
        tempfile.TemporaryDirectory(prefix="hostile-") as home,
        _upstream(attack) as upstream,
        served(Path(home), upstream) as (url, process, (theirs, ours)),
    ):
        victim, attacker = Victim(url, ours), Attacker(url, theirs)
        attacking.submit(_attack, attack, attacker)
        try:
            time.sleep(SETTLE_S)
            taken = victim.work(seconds)
            peak_mb = _peak_mb(process)
        finally:
            attacker.over.set()
            victim.close()
    return Outcome(statistics.quantiles(taken, n=20)[-1], max(taken), len(taken), peak_mb)


def _attack(attack: Callable[[Attacker], None], attacker: Attacker) -> None:
    with attacker.http:
        attack(attacker)


def _peak_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def hostile_members(world: World) -> Iterator[Row]:
    """Memory of the server, and how long others wait, while one member does their worst."""
    for attack in ATTACKS:
        outcome = suffer(attack, SECONDS / 4 if world.quick else SECONDS)
        name = attack.__name__.replace("_", " ")
        world.samples[f"hostile members, {name}"] = {"others": [outcome._asdict()]}
        yield Row(f"hostile members, {name}: p95 of others", outcome.p95_s, most=MOST_P95_S, unit=" s")
        yield Row(f"hostile members, {name}: memory of the server", outcome.peak_mb, most=MOST_MB, unit=" MB")


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for each in ATTACKS:
        if not wanted or each.__name__ in wanted:
            print(each.__name__, json.dumps(suffer(each, 8)._asdict()), flush=True)

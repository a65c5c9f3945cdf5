"""The money figure: requests that are paid for while storage refuses every write, and beyond the batch's own."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from batchline import Batchline
from batchline.models.settings import load_settings
from batchline.models.status import TERMINAL_STATUSES
from batchline.simulate import Simulator, SimulatorOptions
from bench.figures import Row
from bench.servers import s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measuring import Sample, World

REQUESTS = 20_000
IN_FLIGHT = 64
LATENCY_S = 0.5
FLUSH_S = 5.0
BEGUN = 2_000
PATIENCE_S = 1_800.0

MOST = IN_FLIGHT + IN_FLIGHT / LATENCY_S * FLUSH_S
"""Requests in flight, and those that are answered within one flush interval."""

REFUSAL = b"<Error><Code>SlowDown</Code><Message>refused for the benchmark</Message></Error>"


class Gate(ThreadingHTTPServer):
    """Stands before an S3 server, and refuses every write while it is shut."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.is_shut = threading.Event()
        self.refused = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Gate

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.is_shut.is_set() and self.command in {"PUT", "POST"}:
            self.server.refused += 1
            self._answer(503, [("content-type", "application/xml")], REFUSAL)
            return
        connection = HTTPConnection(self.server.behind)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - http.server's names

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        told = {name.lower(): value for name, value in headers}
        for name, value in told.items():
            if name not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        self.send_header("content-length", told.get("content-length", "0") if is_head else str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def refused_writes(world: World) -> Iterator[Row]:
    """Serve a batch of 20,000 while S3 refuses every write, with the server killed halfway and started again."""
    with (
        tempfile.TemporaryDirectory(dir=world.home) as home,
        s3_server(world.home) as place,
        Simulator(SimulatorOptions(latency_s=LATENCY_S)) as upstream,
        Gate(place["AWS_ENDPOINT_URL"]) as gate,
    ):
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        settings = {
            **place,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.server_port}",
            "BATCHLINE_HOME": home,
            "OPENAI_BASE_URL": upstream.base_url,
            "BATCHLINE_MAX_IN_FLIGHT": str(IN_FLIGHT),
            "BATCHLINE_FLUSH_INTERVAL_S": str(FLUSH_S),
        }
        sample = _served(world, settings, upstream, gate)
        gate.shutdown()
    world.samples.setdefault("refused_writes", {})["serve"] = [sample]
    held, minutes = sample["sent_while_refused"], world.refuse_for_s / 60
    yield Row(f"writes refused for {minutes:.3g} min: requests sent meanwhile", held, most=MOST)
    yield Row(
        f"writes refused for {minutes:.3g} min: requests paid beyond the batch's", sample["repeated"], most=MOST
    )


def _served(world: World, settings: dict[str, str], upstream: Simulator, gate: Gate) -> Sample:
    sent = lambda: int(upstream.counters()["received"])  # noqa: E731
    with _client(settings) as client:
        file = client.files.create(file=world.file(REQUESTS))
        batch = client.batches.create(input_file_id=file.id, via=None)
        with _server(world, settings):
            _until(lambda: sent() >= BEGUN)
            gate.is_shut.set()
            before = sent()
            time.sleep(world.refuse_for_s / 2)
        with _server(world, settings):
            time.sleep(world.refuse_for_s / 2)
            meanwhile = sent() - before
            gate.is_shut.clear()
            _until(lambda: client.batches.record(batch.id).status in TERMINAL_STATUSES)
        ended = client.batches.retrieve(batch.id)
    if ended.request_counts.completed != REQUESTS:
        raise RuntimeError(f"{ended.request_counts.completed} of {REQUESTS} requests succeeded")
    return {
        "refused_s": world.refuse_for_s,
        "sent_while_refused": meanwhile,
        "repeated": sent() - REQUESTS,
        "writes_refused": gate.refused,
    }


def _client(settings: dict[str, str]) -> Batchline:
    return Batchline(
        load_settings(
            home=settings["BATCHLINE_HOME"],
            base_url=settings["OPENAI_BASE_URL"],
            storage_url=settings["BATCHLINE_STORAGE_URL"],
            s3_endpoint_url=settings["AWS_ENDPOINT_URL"],
            s3_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        )
    )


@contextmanager
def _server(world: World, settings: dict[str, str]) -> Iterator[None]:
    """`batchline serve`, which is killed when the block ends."""
    command = [str(Path(sys.executable).with_name("batchline")), "serve", "--port", "0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env={**world.environment, **settings}, **quiet)  # type: ignore[call-overload]
    try:
        yield
        if server.poll() is not None:
            raise RuntimeError(f"the server ended by itself with {server.returncode}")
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def _until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the batch did not get on")
        time.sleep(0.2)

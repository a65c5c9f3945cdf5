"""The servers that benchmarks talk to."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg

from batchline.simulate import Simulator, SimulatorOptions

ANSWER = (
    '{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1764000000,"model":"gpt-4o-mini",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"'
    + "A sentence that stands for an answer of common length. "
    * 9
    + '"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":57,"completion_tokens":96,'
    '"total_tokens":153},"system_fingerprint":"fp_0123456789"}'
)

NGINX = """
worker_processes 1; daemon off; pid {home}/pid; error_log {home}/errors;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_buffer_size 64k; client_body_temp_path {home}/bodies;
  server {{
    listen 127.0.0.1:{port}; default_type application/json;
    location / {{ if ($request_method = POST) {{ return 200 '{answer}'; }} return 200 'ok'; }}
  }}
}}
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports_in_pairs(count: int) -> list[int]:
    """Ports that nobody listens on, nor on those 10,000 above, where SeaweedFS puts its gRPC.

    All lie below the range from which the system takes the ports of connections, so that none is gone a moment
    later.
    """
    both = (
        port for port in random.sample(range(11_000, 22_000), 11_000) if is_free(port) and is_free(port + 10_000)
    )
    return list(itertools.islice(both, count))


def is_free(port: int) -> bool:
    """Whether nobody listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def nginx(home: Path) -> Iterator[str]:
    """nginx that answers every POST at once; its base URL."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    port = free_port()
    configuration = home / "nginx.conf"
    configuration.write_text(NGINX.format(home=home, port=port, answer=ANSWER))
    with _running([program, "-c", str(configuration)], f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def stand_in(**options: object) -> Iterator[str]:
    """The stand-in upstream with those options; its base URL."""
    with Simulator(SimulatorOptions.model_validate(options)) as simulator:
        yield simulator.base_url


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """A Prefect server on a database of its own; its API URL."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with _running(command, f"http://127.0.0.1:{port}/api/health", environment=environment):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def s3_server(home: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS with an empty bucket; the environment that makes it the storage."""
    master, volume, filer, port = free_ports_in_pairs(4)
    home.joinpath("s3").mkdir()
    command = [
        *(str(Path(sys.executable).with_name("weed")), "server", f"-dir={home / 's3'}", "-ip=127.0.0.1"),
        *(f"-master.port={master}", "-master.electionTimeout=1s", "-master.telemetry=false"),
        *(f"-volume.port={volume}", "-filer", f"-filer.port={filer}", f"-filer.localSocket={home / 'filer.sock'}"),
        *("-s3", f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        f"-s3.localSocket={home / 's3.sock'}",
    ]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "TMPDIR": str(home)}  # where it puts its logs
    with _running(command, f"{url}/", environment=environment, any_answer=True):
        for _ in range(100):
            if httpx.put(f"{url}/bench").is_success:
                break
            time.sleep(0.1)
        yield {
            "BATCHLINE_STORAGE_URL": "s3://bench/batchline",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def postgres_server() -> Iterator[str]:
    """PostgreSQL with an empty database; its URL. It is run by a user who is not root, as it asks to be."""
    found = shutil.which("postgres")
    programs = Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"))
    port, user = free_port(), ("nobody" if os.geteuid() == 0 else None)
    with tempfile.TemporaryDirectory(prefix="bench-postgres-") as place:
        if user is not None:
            shutil.chown(place, user)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": place}
        make = [programs / "initdb", "-D", f"{place}/cluster", "-U", "bench", "-A", "trust", "--locale=C.UTF-8"]
        subprocess.run(make, check=True, **quiet)  # type: ignore[call-overload]
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", ""]
        server = subprocess.Popen([programs / "postgres", "-D", f"{place}/cluster", *options], **quiet)  # type: ignore[call-overload]
        try:
            url = f"postgresql://bench@127.0.0.1:{port}/postgres"
            _wait_for_postgres(url)
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def _wait_for_postgres(url: str) -> None:
    for _ in range(600):
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(url)


@contextmanager
def _running(
    command: list[str], url: str, *, environment: dict[str, str] | None = None, any_answer: bool = False
) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        _wait_for(url, server, any_answer=any_answer)
        yield
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], *, any_answer: bool) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"{server.args} ended with {server.returncode}")
        try:
            if httpx.get(url).is_success or any_answer:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError(url)

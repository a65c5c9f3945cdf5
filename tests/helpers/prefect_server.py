"""A real Prefect server, with a home and a port of its own; and such a home, to copy, as it takes long to make."""

import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from helpers.processes import Process
from helpers.storage_servers import accepts, free_ports, keep_running, wait_for_server

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
LEASES_IN_FILES = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"
}
"""The lease storage that the documented set-up configures."""

OWN = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", **LEASES_IN_FILES}
DATABASE = "prefect.db"
CRASH_AFTER_S = 45
"""Seconds without a heartbeat after which a server with our deployments treats a run as crashed."""


@dataclass(frozen=True)
class Prefect:
    """The URL of the server's API, its process and its home."""

    url: str
    process: Process
    home: str

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return Path(self.home, "log")

    def is_alive(self) -> bool:
        """True if it listens."""
        return accepts(self.url)

    def revived(self) -> "Prefect":
        """Start it again, on its port and data."""
        return start_prefect(Path(self.home), port=urlsplit(self.url).port)

    def stop(self) -> None:
        """Stop it, whichever process has started it."""
        self.process.kill_group()


def start_prefect(
    home: Path, *, port: int | None = None, changes: Mapping[str, str] | None = None, pages: bool = False
) -> Prefect:
    """`prefect server start`, as a person starts one; with its pages for people if they are wanted."""
    if port is None:
        [port] = free_ports(1)
    with home.joinpath("log").open("ab") as log:
        process = subprocess.Popen(
            [BIN / "prefect", "server", "start", f"--port={port}", "--ui" if pages else "--no-ui"],
            env={**_environment(home), **(_pages(home, port) if pages else {}), **(changes or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/api"
    server = Prefect(url, Process.of(process.pid), str(home))
    try:
        wait_for_server(lambda: is_healthy(url), process, home / "log", timeout_s=180)
    except RuntimeError:
        server.stop()
        raise
    keep_running(process)
    return server


def _pages(home: Path, port: int) -> dict[str, str]:
    """Variables of a server with pages: the API's address for the browser, and a directory to unpack them in."""
    return {
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "pages"),
    }


def make_home(home: Path) -> None:
    """Make a server's database, with all tables."""
    home.mkdir(exist_ok=True)
    _do("prefect", "server", "database", "upgrade", "--yes", environment=_environment(home))


def deploy(home: Path) -> None:
    """Put our deployments into a server's database."""
    server = start_prefect(home)
    try:
        set_up(_environment(home) | {"PREFECT_API_URL": server.url})
    finally:
        server.stop()


def set_up(environment: Mapping[str, str]) -> None:
    """Give the server that the environment names our deployments, by the documented commands."""
    _do("batchline", "prefect", "setup", "--crash-after", str(CRASH_AFTER_S), environment=environment)
    _do("prefect", "deploy", "--all", "--no-prompt", environment=environment)


def copy_home(home: Path, to: Path) -> None:
    """Copy the database of a server that does not run."""
    to.mkdir(exist_ok=True)
    with closing(sqlite3.connect(home / DATABASE)) as whole, closing(sqlite3.connect(to / DATABASE)) as copy:
        whole.backup(copy)


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, **OWN, "PREFECT_HOME": str(home)}


def _do(command: str, *arguments: str, environment: Mapping[str, str]) -> None:
    done = subprocess.run([BIN / command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def is_healthy(url: str) -> bool:
    """Return True if the server with that API responds."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

"""A real Prefect server, with a home and a port of its own."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from real_servers import free_ports, keep, wait_until

OWN = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Prefect:
    """The URL of the server's API, and its process."""

    url: str
    process: int

    def stop(self) -> None:
        """Stop it, whichever process has started it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)


def start_prefect(home: Path) -> Prefect:
    """`prefect server start`, as a person starts one."""
    [port] = free_ports(1)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with home.joinpath("log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("prefect"), "server", "start", f"--port={port}", "--no-ui"],
            env={**kept, **OWN, "PREFECT_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/api"
    server = Prefect(url, process.pid)
    try:
        wait_until(lambda: _is_healthy(url), process, home / "log", patience_s=180)
    except RuntimeError:
        server.stop()
        raise
    keep(process)
    return server


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

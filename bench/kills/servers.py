"""A SeaweedFS and a PostgreSQL that can be killed and started again on the same data and ports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import httpx
import psycopg

from bench.servers import free_port, free_ports_in_pairs

READY_S = 120.0


class Server(Protocol):
    """A server on data of its own."""

    def start(self) -> None:
        """Start it and wait until it serves."""

    def kill(self) -> None:
        """Kill it and all its processes with SIGKILL."""


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants with SIGKILL, the process itself first: it starts none anew."""
    for each in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that the process has started, and those that these have."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(place.parent.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def wait_for(is_ready: object, process: subprocess.Popen[bytes], name: str) -> None:
    """Wait until the server serves; raises `RuntimeError` if it ends, `TimeoutError` if it takes too long."""
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        if is_ready():  # type: ignore[operator]
            return
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}")
        time.sleep(0.05)
    raise TimeoutError(f"{name} does not serve after {READY_S:.0f} s")


class SeaweedFS:
    """An S3 server; `settings` are those of a storage in its bucket."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir()
        master, volume, filer, s3 = free_ports_in_pairs(4)
        self._url = f"http://127.0.0.1:{s3}"
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "weed"
        self._command = [
            *(weed, "server", f"-dir={home}", "-ip=127.0.0.1"),
            *(f"-master.port={master}", "-master.electionTimeout=1s", "-master.telemetry=false"),
            *(f"-volume.port={volume}", "-volume.max=100"),
            *("-filer", f"-filer.port={filer}", f"-filer.localSocket={home / 'filer.sock'}"),
            *(
                "-s3",
                f"-s3.port={s3}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                f"-s3.localSocket={home / 's3.sock'}",
            ),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = {
            "storage_url": "s3://kills/batchline",
            "s3_endpoint_url": self._url,
            "s3_region": "us-east-1",
            "s3_access_key_id": "any",
            "s3_secret_access_key": "any",
        }

    def start(self) -> None:
        """Start it and wait until its bucket takes objects."""
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env={**os.environ, "TMPDIR": str(self._home)},
                start_new_session=True,
            )
        wait_for(self._takes_objects, self._process, "SeaweedFS")

    def _takes_objects(self) -> bool:
        try:
            httpx.put(f"{self._url}/kills", timeout=5)
            return httpx.put(f"{self._url}/kills/probe", content=b"x", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()

    def close(self) -> None:
        """Kill it; its data stays."""
        self.kill()


class PostgreSQL:
    """A database server, run by a user who is not root, as it asks to be."""

    def __init__(self, log: Path) -> None:
        found = shutil.which("postgres")
        self._programs = Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"))
        self._user = "nobody" if os.geteuid() == 0 else None
        self._log = log
        # That user may not enter directories of ours.
        self._home = home = Path(tempfile.mkdtemp(prefix="kills-postgresql-"))
        self._port = free_port()
        if self._user is not None:
            shutil.chown(home, self._user)
        make = [
            self._programs / "initdb",
            "-D",
            home / "cluster",
            "-U",
            "bench",
            "-A",
            "trust",
            "--locale=C.UTF-8",
        ]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, user=self._user, cwd=home)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://bench@127.0.0.1:{self._port}/postgres"
        self.settings = {"database_url": self.url}

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        command = [
            self._programs / "postgres",
            "-D",
            self._home / "cluster",
            "-h",
            "127.0.0.1",
            "-p",
            str(self._port),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-k", ""],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._home,
            )
        wait_for(self._takes_connections, self._process, "PostgreSQL")

    def _takes_connections(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """Kill it; what its processes share is free only once all of them are gone."""
        if self._process is None:
            return
        every = descendants(self._process.pid)
        kill_tree(self._process.pid)
        self._process.wait()
        give_up_at = time.monotonic() + READY_S
        while any(Path(f"/proc/{pid}").exists() for pid in every) and time.monotonic() < give_up_at:
            time.sleep(0.01)

    def close(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

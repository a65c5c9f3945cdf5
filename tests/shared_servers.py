"""One real server of each kind for all workers of a test run: the first that needs it starts it.

The process that began the run stops them, when the last worker is done.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from real_prefect import Prefect, copy_home, deploy, make_home, start_prefect
from real_servers import Postgres, S3Server, start_postgres, start_seaweedfs

from batchline.models.settings import load_settings
from batchline.storage.records import upgrade_database


def _start_prefect(home: Path) -> Prefect:
    return start_prefect(prefect_home(home))


KINDS: dict[str, tuple[type, Callable[[Path], Any]]] = {
    "s3": (S3Server, start_seaweedfs),
    "postgres": (Postgres, start_postgres),
    "prefect": (Prefect, _start_prefect),
}
_PLACE = "TESTS_SERVERS_PLACE"
"""The variable that tells the workers of a run where they note what they have started."""


def begin() -> None:
    """Make the place where the workers that are started from here on find each other's servers."""
    place = Path(tempfile.mkdtemp(prefix="batchline-tests-"))
    place.chmod(0o711)  # PostgreSQL runs as another user
    os.environ[_PLACE] = str(place)


def end() -> None:
    """Stop all servers, and remove what they have stored."""
    place = Path(os.environ.pop(_PLACE))
    for kind, (shape, _) in KINDS.items():
        note = place / f"{kind}.json"
        if note.exists():
            shape(**json.loads(note.read_text())).stop()
    shutil.rmtree(place, ignore_errors=True)  # SeaweedFS may still be at it


def s3_server() -> S3Server:
    """The run's S3 server."""
    return _server("s3")


def postgres() -> Postgres:
    """The run's PostgreSQL, which no test may stop."""
    return _server("postgres")


def prefect() -> Prefect:
    """The run's Prefect server, without a worker."""
    return _server("prefect")


def migrated() -> str:
    """The name of a database at the run's PostgreSQL with all tables, to copy."""
    server = postgres()

    def make() -> str:
        name = server.create()
        upgrade_database(load_settings(database_url=server.url(name)))
        return name

    return str(_made_once("migrated", make))


def prefect_home(home: Path, *, deployed: bool = False) -> Path:
    """Make a home of a Prefect server whose database has all tables, and our deployments where they are wanted.

    To make either takes a server some ten seconds of CPU.
    """
    copy_home(_deployed_home() if deployed else _empty_home(), home)
    return home


def _empty_home() -> Path:
    home = Path(os.environ[_PLACE]) / "prefect-empty"

    def make() -> str:
        make_home(home)
        return str(home)

    return Path(_made_once(home.name, make))


def _deployed_home() -> Path:
    home = Path(os.environ[_PLACE]) / "prefect-deployed"

    def make() -> str:
        copy_home(_empty_home(), home)
        deploy(home)
        return str(home)

    return Path(_made_once(home.name, make))


def _server(kind: str) -> Any:
    shape, start = KINDS[kind]
    home = Path(os.environ[_PLACE]) / kind

    def make() -> dict[str, object]:
        home.mkdir()
        return asdict(start(home))

    return shape(**_made_once(kind, make))


def _made_once(name: str, make: Callable[[], Any]) -> Any:
    """What the first of this run's processes that asks for it makes; the others wait for it."""
    place = Path(os.environ[_PLACE])
    note = place / f"{name}.json"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            note.write_text(json.dumps(make()))
        return json.loads(note.read_text())

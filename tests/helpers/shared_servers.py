"""Real servers, one of each kind for all workers of a test run; the first worker that needs one starts it.

The process that began the run stops them, when the last worker is done. A server that has died is started again
by the first test that fails without it, and that test's report has the server's last words.
"""

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from batchline.models.settings import Settings, load_settings
from batchline.storage.records.store import upgrade_database
from helpers.prefect_server import Prefect, copy_home, deploy, make_home, start_prefect
from helpers.storage_servers import Postgres, S3Server, start_postgres, start_seaweedfs


def _start_prefect(home: Path) -> Prefect:
    return start_prefect(prefect_home(home))


KINDS: dict[str, Callable[[Path], Any]] = {
    "s3": start_seaweedfs,
    "postgres": start_postgres,
    "prefect": _start_prefect,
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
    for server in _running(place).values():
        with suppress(RuntimeError):  # it was dead
            server.stop()
    shutil.rmtree(place, ignore_errors=True)  # SeaweedFS may still be at it


def keep_logs(folder: Path) -> None:
    """Copy what the servers have written into that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, server in _running(Path(os.environ[_PLACE])).items():
        shutil.copy(server.log, folder / f"{kind}.log")


def revive() -> Iterator[tuple[str, str]]:
    """Start the servers again that have died; of each its kind, and how it ended with its last words."""
    for kind, server in _running(Path(os.environ[_PLACE])).items():
        if server.is_alive():
            continue
        with _locked(kind) as note:
            known = pickle.loads(note.read_bytes())
            if not known.is_alive():
                words = known.log.read_text(errors="replace")[-3_000:]
                yield kind, f"process {known.process.pid}: {known.process.end()}; its last words:\n{words}"
                with suppress(RuntimeError):  # the next test that fails without it tries again
                    note.write_bytes(pickle.dumps(known.revived()))


def _running(place: Path) -> dict[str, Any]:
    """The servers that were started so far, by kind."""
    notes = {kind: place / f"{kind}.note" for kind in KINDS}
    return {kind: pickle.loads(note.read_bytes()) for kind, note in notes.items() if note.exists()}


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


def copy_sqlite(settings: Settings) -> None:
    """Give settings that name an SQLite database one with all tables: migrating a new one takes 60 ms of CPU."""
    url = make_url(settings.effective_database_url)
    if url.drivername != "sqlite" or Path(str(url.database)).exists():
        return

    def make() -> str:
        path = Path(os.environ[_PLACE]) / "tables.db"
        upgrade_database(load_settings(database_url=f"sqlite:///{path}"))
        return str(path)

    path = Path(str(url.database))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copy(_made_once("sqlite", make), path)


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
    home = Path(os.environ[_PLACE]) / kind

    def make() -> Any:
        home.mkdir()
        return KINDS[kind](home)

    return _made_once(kind, make)


def _made_once(name: str, make: Callable[[], Any]) -> Any:
    """Return what the first of this run's processes that asks for it makes; the others wait for it."""
    with _locked(name) as note:
        if not note.exists():
            note.write_bytes(pickle.dumps(make()))
        return pickle.loads(note.read_bytes())


@contextmanager
def _locked(name: str) -> Iterator[Path]:
    """The file that notes a thing, which no other process reads or writes meanwhile."""
    place = Path(os.environ[_PLACE])
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place / f"{name}.note"

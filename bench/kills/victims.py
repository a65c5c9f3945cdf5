"""The victims: the command line, the storage, the database; or the database is an older copy afterwards."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from bench.kills.servers import PostgreSQL, SeaweedFS, kill_tree

if TYPE_CHECKING:
    import subprocess

    from bench.kills.account import Account
    from bench.kills.servers import Server
    from bench.kills.site import Batch, Site

MOST_KILLS = 3
"""Of one batch."""

DOWN_S = 3.0
"""A server that was killed is started again after at most this long."""


def kill_command_line(site: Site, kills: int) -> Account:
    """Kill `batchline run` and `run --resume` of one batch, up to that many times."""
    batch = site.new_batch()
    while len(batch.killed_at) < min(kills, MOST_KILLS):
        process = site.start_run(batch)
        if not site.pass_a_moment(batch, process):
            break
        _kill(batch, process)
        if batch.killed_at and site.chance.random() < 0.3:
            break
    if not site.is_over(batch):
        site.drive_to_end(batch)
    return site.account(batch)


def _kill(batch: Batch, process: subprocess.Popen[bytes]) -> None:
    kill_tree(process.pid)
    batch.killed_at.append(time.time())
    process.wait()


def kill_server(site: Site, server: Server, kills: int) -> Account:
    """Kill a server while a batch runs, up to that many times, and start it again soon."""
    batch = site.new_batch()
    process = site.start_run(batch)
    while len(batch.killed_at) < min(kills, MOST_KILLS):
        if not site.pass_a_moment(batch, process):
            if site.is_over(batch):
                break
            process = site.start_run(batch)
            continue
        server.kill()
        batch.killed_at.append(time.time())
        time.sleep(site.chance.uniform(0, DOWN_S))
        server.start()
        if site.chance.random() < 0.2:  # the machine of both was restarted
            _kill(batch, process)
    process.wait()
    if not site.is_over(batch):
        site.drive_to_end(batch)
    return site.account(batch)


def restore_database(site: Site) -> Account:
    """Put an older copy of the database back after the runner was killed or has ended, and go on."""
    batch = site.new_batch()
    database, copy = site.settings.home / "batchline.db", site.home / f"{batch.name}.db"
    process = site.start_run(batch)
    while site.find(batch) is None and process.poll() is None:
        time.sleep(0.02)
    site.pass_a_moment(batch, process)
    with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(copy)) as older:
        now.backup(older)
    if site.chance.random() < 0.5:
        site.pass_a_moment(batch, process)
        _kill(batch, process)
    else:
        process.wait()
        batch.killed_at.append(time.time())
    for left in database.parent.glob(f"{database.name}-*"):
        left.unlink()
    shutil.move(copy, database)
    if not site.is_over(batch):
        site.drive_to_end(batch)
    return site.account(batch)


def storage_server(home: Path) -> SeaweedFS:
    """A storage that runs."""
    server = SeaweedFS(home / "seaweedfs")
    server.start()
    return server


def database_server(home: Path) -> PostgreSQL:
    """A database that runs."""
    server = PostgreSQL(home / "postgresql.log")
    server.start()
    return server

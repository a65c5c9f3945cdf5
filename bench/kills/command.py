"""`python -m bench kills`: kill at random moments, drive every batch to its end, and report what was lost.

Exits with 1 if a batch lost or doubled a line, repeated more requests than were in flight or unsaved, was not
announced exactly once, or never ended.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.kills.account import Account
from bench.kills.prefect import PrefectRounds, PrefectServer
from bench.kills.site import Site, logged_upstream
from bench.kills.victims import (
    database_server,
    kill_command_line,
    kill_server,
    restore_database,
    storage_server,
)

SHARES = {"command line": 0.4, "storage": 0.2, "database": 0.2, "worker": 0.1, "Prefect server": 0.1}
"""The shares of the kills that the chosen victims get."""

RESTORES = "restored database"


@dataclass
class Tally:
    """The accounts of one victim's batches."""

    victim: str
    accounts: list[Account] = field(default_factory=list)
    kills: int = 0

    @property
    def worst(self) -> Account:
        """The batch whose repeated requests came nearest to its bound."""
        return max(self.accounts, key=lambda account: account.repeated - account.bound)

    def row(self) -> tuple[str, ...]:
        if not self.accounts:
            return (self.victim, *["-"] * 7)
        told = [account.announced for account in self.accounts if account.announced is not None]
        announced = f"{sum(each == 1 for each in told)} of {len(told)}" if told else "-"
        return (
            self.victim,
            str(len(self.accounts)),
            str(self.kills),
            str(sum(account.lost for account in self.accounts)),
            str(sum(account.doubled for account in self.accounts)),
            str(max(account.repeated for account in self.accounts)),
            f"{self.worst.repeated} of {self.worst.bound}",
            announced,
        )


HEAD = ("victim", "batches", "kills", "lost", "doubled", "repeats max", "nearest to bound", "announced once")

Round = Callable[[int], list[Account]]
"""Makes batches, kills up to that many times, and drives the batches to their ends."""

Rounds = tuple[Round, Callable[[], list[Account]]]
"""A round, and what is checked after the last one."""


def main(arguments: list[str]) -> int:
    """Run the command; 1 if anything was violated."""
    options = _options(arguments)
    home = Path(options.keep or tempfile.mkdtemp(prefix="kills-"))
    home.mkdir(exist_ok=True)
    began, tallies = time.monotonic(), []
    for victim, kills in _division(options).items():
        tally = Tally(victim)
        tallies.append(tally)
        chance = random.Random(f"{options.seed} {victim}")
        place = home / victim.replace(" ", "-")
        place.mkdir()
        with PLACES[victim](place, chance) as (one_round, check_last):
            _rounds(tally, kills, one_round)
            if not options.skip_slots:
                tally.accounts += check_last()
    _print(tallies)
    wrong = [(tally.victim, account) for tally in tallies for account in tally.accounts if account.wrong]
    for victim, account in wrong:
        print(f"VIOLATED: {victim}, batch {account.batch}: {'; '.join(account.wrong)}")
    print(f"{time.monotonic() - began:.0f} s, seed {options.seed}")
    if wrong:
        print(f"everything is kept in {home}")
    elif not options.keep:
        shutil.rmtree(home, ignore_errors=True)
    return int(bool(wrong))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills over all victims")
    parser.add_argument("--restores", type=int, default=20, help="restores of an older copy of the database")
    parser.add_argument("--seed", type=int, default=0, help="decides on the moments, not exactly")
    parser.add_argument("--victim", action="append", choices=[*SHARES], help="only this one; may be repeated")
    parser.add_argument("--skip-slots", action="store_true", help="do not check for leaked slots (5 minutes)")
    parser.add_argument("--keep", help="a new directory in which everything is left")
    return parser.parse_args(arguments)


def _division(options: argparse.Namespace) -> dict[str, int]:
    """Return the number of kills of each victim."""
    chosen = options.victim or list(SHARES)
    whole = sum(SHARES[victim] for victim in chosen)
    kills = {victim: round(options.kills * SHARES[victim] / whole) for victim in chosen}
    return {victim: count for victim, count in {**kills, RESTORES: options.restores}.items() if count}


def _rounds(tally: Tally, kills: int, one_round: Round) -> None:
    """Kill until there were that many kills."""
    for _ in range(2 * kills):  # a batch may be over before it is killed
        if tally.kills >= kills:
            return
        began = time.monotonic()
        try:
            accounts = one_round(kills - tally.kills)
        except Exception as error:  # noqa: BLE001 - a batch that cannot be driven to its end is a violation
            traceback.print_exc()
            accounts = [Account("?", kills=1, wrong=[f"{type(error).__name__}: {error}"])]
        tally.accounts += accounts
        tally.kills += max(account.kills for account in accounts)
        _tell(tally, kills, accounts, time.monotonic() - began)


def _tell(tally: Tally, kills: int, accounts: list[Account], seconds: float) -> None:
    """Say how a round went."""
    for account in accounts:
        told = "; ".join(account.wrong) or "ok"
        print(
            f"    {tally.victim}: {tally.kills} of {kills} kills, batch {account.batch}: "
            f"{account.repeated} repeated of {account.bound}, {told} ({seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )


def _print(tallies: list[Tally]) -> None:
    rows = [HEAD, *(tally.row() for tally in tallies)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))


@contextmanager
def _command_line(home: Path, chance: random.Random) -> Iterator[Rounds]:
    with logged_upstream(home) as (upstream, log):
        site = Site(home, upstream, log, chance, {})
        yield lambda kills: [kill_command_line(site, kills)], list


@contextmanager
def _restored(home: Path, chance: random.Random) -> Iterator[Rounds]:
    with logged_upstream(home) as (upstream, log):
        site = Site(home, upstream, log, chance, {})
        yield lambda _: [restore_database(site)], list


@contextmanager
def _server(name: str, home: Path, chance: random.Random) -> Iterator[Rounds]:
    """Both servers run, and one of them is killed."""
    with logged_upstream(home) as (upstream, log), ExitStack() as stack:
        servers = {"storage": storage_server(home), "database": database_server(home)}
        for server in servers.values():
            stack.callback(server.close)
        changes = {key: value for server in servers.values() for key, value in server.settings.items()}
        site = Site(home, upstream, log, chance, changes)
        site.start("db", "upgrade").wait()
        yield lambda kills: [kill_server(site, servers[name], kills)], list


@contextmanager
def _prefect(victim: str, home: Path, chance: random.Random) -> Iterator[Rounds]:
    with logged_upstream(home) as (upstream, log), ExitStack() as stack:
        database = database_server(home)
        stack.callback(database.close)
        server = PrefectServer(home / "prefect", database)
        stack.callback(server.kill)
        server.start()
        changes = {"share_budgets": True, "source_roots": (str(home),), "source_still_s": 0.0, "lease_s": 5.0}
        site = Site(home, upstream, log, chance, changes, server.environment)
        rounds = PrefectRounds(site, server)
        stack.callback(rounds.close)
        server.set_up()
        yield lambda kills: rounds.kill(victim, kills), rounds.check_slots


PLACES = {
    "command line": _command_line,
    "storage": partial(_server, "storage"),
    "database": partial(_server, "database"),
    "worker": partial(_prefect, "worker"),
    "Prefect server": partial(_prefect, "server"),
    RESTORES: _restored,
}

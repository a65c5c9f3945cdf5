"""Compares a batch's files after kills with the upstream's log of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from batchline import Batchline
    from batchline.models.batches import BatchResponse

IN_FLIGHT = 16
LATENCY_S = 0.2
FLUSH_S = 0.5
LATE_S = 1.0
"""Seconds by which a flush may be late: the servers run on the same cores as the programs that are killed."""


@dataclass(frozen=True)
class Event:
    """A line of the upstream's log."""

    at: float
    kind: str
    custom_id: str


class UpstreamLog:
    """The requests that the upstream has received and answered, with times. Its file grows while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._events: dict[str, list[Event]] = {}

    def events(self, batch: str) -> list[Event]:
        """Everything so far of the batch whose custom_ids begin with that name."""
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                told = json.loads(line)
                event = Event(told["at"], told["event"], told["user"])
                self._events.setdefault(event.custom_id.partition("/")[0], []).append(event)
        return self._events.get(batch, [])

    def received(self, batch: str) -> int:
        """The number of requests of the batch that came in, repeated ones included."""
        return sum(event.kind == "received" for event in self.events(batch))

    def repeated(self, batch: str) -> int:
        """The number of requests of the batch that came in again."""
        times = Counter(event.custom_id for event in self.events(batch) if event.kind == "received")
        return sum(times.values()) - len(times)

    def unsaved_at_most(self, batch: str, at: float) -> int:
        """Requests that a kill at that time may repeat: in flight, or answered within a flush interval before."""
        since = at - FLUSH_S - LATE_S
        recent = sum(event.kind == "answered" and since <= event.at <= at for event in self.events(batch))
        return IN_FLIGHT + recent


@dataclass
class Account:
    """A batch that was driven to its end: its name, the kills that it survived, and what is wrong with it."""

    batch: str
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    bound: int = 0
    announced: int | None = None
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Add what the figures themselves say is wrong."""
        if self.lost or self.doubled:
            self.wrong.append(f"{self.lost} lines lost, {self.doubled} doubled")
        if self.repeated > self.bound:
            self.wrong.append(f"{self.repeated} requests repeated, at most {self.bound} may be")
        if self.announced not in {None, 1}:
            self.wrong.append(f"its end was announced {self.announced} times")


def account_of(
    client: Batchline, ended: BatchResponse, name: str, requests: int, log: UpstreamLog, killed_at: list[float]
) -> Account:
    """Return the account of a batch that is over."""
    account = Account(name, kills=len(killed_at))
    wanted = [f"{name}/{number}" for number in range(requests)]
    files = [_lines(client, file_id) for file_id in (ended.output_file_id, ended.error_file_id)]
    times = Counter(line["custom_id"] for lines in files for line in lines)
    account.lost = sum(custom_id not in times for custom_id in wanted)
    account.doubled = sum(times.values()) - len(times)
    account.repeated = log.repeated(name)
    account.bound = sum(log.unsaved_at_most(name, at) for at in killed_at)
    counts = ended.request_counts
    if ended.status != "completed" or (counts.total, counts.completed, counts.failed) != (requests, requests, 0):
        account.wrong.append(f"it is {ended.status} with {counts}")
    for lines in files:
        order = [int(line["custom_id"].rpartition("/")[2]) for line in lines]
        if order != sorted(order):
            account.wrong.append("a file is not in input order")
    if unknown := sorted(times.keys() - set(wanted)):
        account.wrong.append(f"lines of {len(unknown)} unknown requests, the first {unknown[0]}")
    account.check()
    return account


def _lines(client: Batchline, file_id: str | None) -> list[dict[str, str]]:
    if file_id is None:
        return []
    return [json.loads(line) for line in b"".join(client.files.content(file_id)).splitlines()]

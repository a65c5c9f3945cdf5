"""The slots of one limit that this process holds: pieces with a lease each, taken, renewed and given back."""

import logging
import time
from math import inf
from typing import Final

import msgspec

from batchline.upstream.ledger import Ledger
from batchline.upstream.shares import to_give_back

log = logging.getLogger(__name__)

RENEWED_AT: Final = 1 / 3
"""Of a lease, the part after which it is renewed: twice more before it ends, where once fails."""

SURE_UNTIL: Final = 0.95
"""Of a lease, the part in which it can only be unknown because the ledger has forgotten it."""


class Piece(msgspec.Struct, eq=False):
    """Some slots and their lease; none where the ledger has forgotten it, while it still counts the slots.

    The lease was taken at `since`, and taken or renewed at `at`, which is also kept by the wall's clock.
    """

    slots: int
    lease: str | None
    since: float
    at: float
    wall_at: float

    def age_s(self) -> float:
        """Seconds since it was taken or renewed. A machine's sleep counts: one of the clocks goes on."""
        return max(time.monotonic() - self.at, time.time() - self.wall_at)

    def renewed(self, at: float, wall_at: float) -> None:
        """Count from then."""
        self.at, self.wall_at = at, wall_at


class Slots:
    """What is held of the limit of that name."""

    def __init__(self, name: str, ledger: Ledger, lease_s: float) -> None:
        self.name = name
        self._ledger = ledger
        self._lease_s = lease_s
        self._pieces: list[Piece] = []
        self._leaving: list[Piece] = []

    @property
    def held(self) -> int:
        """How many there are."""
        return sum(piece.slots for piece in self._pieces)

    @property
    def is_leaving(self) -> bool:
        """Whether something is to be given back."""
        return bool(self._leaving)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, nor still to be given back."""
        return not self._pieces and not self._leaving

    def take(self, slots: int) -> bool:
        """Take one more piece; false where so much is not free."""
        at, wall_at = time.monotonic(), time.time()
        lease = self._ledger.take(self.name, slots, self._lease_s)
        if lease is None:
            return False
        self._pieces.append(Piece(slots, lease, at, at, wall_at))
        return True

    def set_aside(self, slots: int) -> None:
        """Hold as much of so many slots no more as can be; `give_back` brings it to the ledger."""
        chosen = {*to_give_back([piece.slots for piece in self._pieces], slots)}
        self._leaving += [piece for place, piece in enumerate(self._pieces) if place in chosen]
        self._pieces = [piece for place, piece in enumerate(self._pieces) if place not in chosen]

    def remembered_since(self) -> float:
        """Since when the ledger has forgotten nothing, for sure: this lease was taken then, and is still known."""
        for piece in self._pieces:
            if piece.lease is not None:
                self._renew(piece, piece.lease)
        return min((piece.since for piece in self._pieces if piece.lease is not None), default=inf)

    def give_back(self, remembered_since: float = inf) -> None:
        """Give back what was set aside; what does not get through is tried again the next time.

        A lease that was forgotten gives nothing back and says nothing of it. So one that is older than what the
        ledger remembers for sure is asked for first.
        """
        while self._leaving:
            piece = self._leaving[-1]
            if piece.lease is not None and piece.at < remembered_since:
                self._renew(piece, piece.lease)
            if piece not in self._leaving:
                continue
            if piece.lease is not None:
                self._ledger.give_back(piece.lease)
                self._leaving.pop()
            else:
                self._leaving.pop()  # before: twice would be once too often
                self._ledger.give_back_slots(self.name, piece.slots)

    def renew(self, free: int) -> None:
        """Renew what is due; a lease that the ledger has forgotten is taken anew while so many slots are free."""
        self.drop_lapsed()
        for piece in list(self._pieces):
            if piece.lease is None:
                if piece.slots <= free:
                    self._replace(piece)
            elif piece.age_s() > self._lease_s * RENEWED_AT:
                self._renew(piece, piece.lease)

    def _renew(self, piece: Piece, lease: str) -> None:
        at, wall_at = time.monotonic(), time.time()
        if self._ledger.renew(lease, self._lease_s):
            piece.renewed(at, wall_at)
        elif piece.age_s() < self._lease_s * SURE_UNTIL:
            log.warning("the lease of %d slots of %s is forgotten; they are kept", piece.slots, self.name)
            piece.lease = None
        else:
            for pieces in (self._pieces, self._leaving):
                if piece in pieces:
                    pieces.remove(piece)

    def _replace(self, piece: Piece) -> None:
        """Put a lease under slots that have none, by way of as many that are free: none is lost on the way."""
        at, wall_at = time.monotonic(), time.time()
        lease = self._ledger.take(self.name, piece.slots, self._lease_s)
        if lease is not None:
            piece.lease, piece.since = lease, at
            piece.renewed(at, wall_at)
            self._ledger.give_back_slots(self.name, piece.slots)

    def drop_lapsed(self) -> None:
        """Hold no more what has lapsed: others may have it."""
        self._pieces = [piece for piece in self._pieces if piece.lease is None or piece.age_s() < self._lease_s]

    def forget(self) -> None:
        """Hold nothing of a limit that is gone."""
        self._pieces, self._leaving = [], []

    def leave(self, used: int, lapse_s: float, remembered_since: float) -> None:
        """Give back all but what is used; that is left to lapse, and counts on after the process has ended."""
        self.set_aside(self.held - used)
        self._leaving += [piece for piece in self._pieces if piece.lease is None]
        self.give_back(remembered_since)
        for piece in self._pieces:
            if piece.lease is not None:
                self._let_lapse(piece, piece.lease, lapse_s)
        self._pieces = []

    def _let_lapse(self, piece: Piece, lease: str, lapse_s: float) -> None:
        """Leave a piece to its lease; one that the ledger has forgotten would never end, so its slots go back."""
        is_known = self._ledger.renew(lease, lapse_s)
        if not is_known and piece.age_s() < self._lease_s * SURE_UNTIL:
            self._ledger.give_back_slots(self.name, piece.slots)

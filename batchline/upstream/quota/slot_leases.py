"""The slots of one limit that this process holds: pieces with a lease each, taken, renewed and given back."""

import logging
import time
from math import inf
from typing import Final

import msgspec

from batchline.upstream.quota.fair_share import choose_leases
from batchline.upstream.quota.store import QuotaStore

log = logging.getLogger(__name__)

RENEW_AFTER_SHARE: Final = 1 / 3
"""Of a lease, the part after which it is renewed: twice more before it ends, where once fails."""

VALID_SHARE: Final = 0.95
"""Of a lease, the part in which it can only be unknown because the ledger has forgotten it."""


class SlotLease(msgspec.Struct, eq=False):
    """Some slots and their lease; none where the ledger has forgotten it, while it still counts the slots.

    The lease was taken at `since`, and taken or renewed at `at`, which is also kept by the wall's clock.
    """

    slots: int
    lease_id: str | None
    taken_at: float
    renewed_at: float
    renewed_wall_at: float

    def age_s(self) -> float:
        """Seconds since it was taken or renewed. A machine's sleep counts: one of the clocks goes on."""
        return max(time.monotonic() - self.renewed_at, time.time() - self.renewed_wall_at)

    def mark_renewed(self, renewed_at: float, renewed_wall_at: float) -> None:
        """Count from then."""
        self.renewed_at, self.renewed_wall_at = renewed_at, renewed_wall_at


class SlotLeases:
    """What is held of the limit of that name."""

    def __init__(self, limit_name: str, store: QuotaStore, lease_s: float) -> None:
        self.limit_name = limit_name
        self._store = store
        self._lease_s = lease_s
        self._leases: list[SlotLease] = []
        self._releasing: list[SlotLease] = []

    @property
    def held_slots(self) -> int:
        """How many there are."""
        return sum(lease.slots for lease in self._leases)

    @property
    def is_releasing(self) -> bool:
        """Whether something is to be given back."""
        return bool(self._releasing)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, nor still to be given back."""
        return not self._leases and not self._releasing

    def acquire(self, slots: int) -> bool:
        """Take one more piece; false where so much is not free."""
        now, wall_now = time.monotonic(), time.time()
        lease_id = self._store.acquire(self.limit_name, slots, self._lease_s)
        if lease_id is None:
            return False
        self._leases.append(SlotLease(slots, lease_id, now, now, wall_now))
        return True

    def mark_for_release(self, slots: int) -> None:
        """Hold as much of so many slots no more as can be; `give_back` brings it to the ledger."""
        chosen_indexes = {*choose_leases([lease.slots for lease in self._leases], slots)}
        self._releasing += [lease for index, lease in enumerate(self._leases) if index in chosen_indexes]
        self._leases = [lease for index, lease in enumerate(self._leases) if index not in chosen_indexes]

    def store_started_at(self) -> float:
        """Since when the ledger has forgotten nothing, for sure: this lease was taken then, and is still known."""
        for lease in self._leases:
            if lease.lease_id is not None:
                self._renew_lease(lease, lease.lease_id)
        return min((lease.taken_at for lease in self._leases if lease.lease_id is not None), default=inf)

    def release_marked(self, store_started_at: float = inf) -> None:
        """Give back what was set aside; what does not get through is tried again the next time.

        A lease that was forgotten gives nothing back and says nothing of it. So one that is older than what the
        ledger remembers for sure is asked for first.
        """
        while self._releasing:
            lease = self._releasing[-1]
            if lease.lease_id is not None and lease.renewed_at < store_started_at:
                self._renew_lease(lease, lease.lease_id)
            if lease not in self._releasing:
                continue
            if lease.lease_id is not None:
                self._store.release(lease.lease_id)
                self._releasing.pop()
            else:
                self._releasing.pop()  # before: twice would be once too often
                self._store.release_slots(self.limit_name, lease.slots)

    def renew(self, free_slots: int) -> None:
        """Renew what is due; a lease that the ledger has forgotten is taken anew while so many slots are free."""
        self.drop_expired()
        for lease in list(self._leases):
            if lease.lease_id is None:
                if lease.slots <= free_slots:
                    self._replace_lost_lease(lease)
            elif lease.age_s() > self._lease_s * RENEW_AFTER_SHARE:
                self._renew_lease(lease, lease.lease_id)

    def _renew_lease(self, piece: SlotLease, lease: str) -> None:
        now, wall_now = time.monotonic(), time.time()
        if self._store.renew(lease, self._lease_s):
            piece.mark_renewed(now, wall_now)
        elif piece.age_s() < self._lease_s * VALID_SHARE:
            log.warning("the lease of %d slots of %s is forgotten; they are kept", piece.slots, self.limit_name)
            piece.lease_id = None
        else:
            for leases in (self._leases, self._releasing):
                if piece in leases:
                    leases.remove(piece)

    def _replace_lost_lease(self, lease: SlotLease) -> None:
        """Put a lease under slots that have none, by way of as many that are free: none is lost on the way."""
        now, wall_now = time.monotonic(), time.time()
        lease_id = self._store.acquire(self.limit_name, lease.slots, self._lease_s)
        if lease_id is not None:
            lease.lease_id, lease.taken_at = lease_id, now
            lease.mark_renewed(now, wall_now)
            self._store.release_slots(self.limit_name, lease.slots)

    def drop_expired(self) -> None:
        """Hold no more what has lapsed: others may have it."""
        self._leases = [lease for lease in self._leases if lease.lease_id is None or lease.age_s() < self._lease_s]

    def clear(self) -> None:
        """Hold nothing of a limit that is gone."""
        self._leases, self._releasing = [], []

    def release_unused(self, used: int, expiry_s: float, store_started_at: float) -> None:
        """Give back all but what is used; that is left to lapse, and counts on after the process has ended."""
        self.mark_for_release(self.held_slots - used)
        self._releasing += [lease for lease in self._leases if lease.lease_id is None]
        self.release_marked(store_started_at)
        for lease in self._leases:
            if lease.lease_id is not None:
                self._let_expire(lease, lease.lease_id, expiry_s)
        self._leases = []

    def _let_expire(self, piece: SlotLease, lease: str, lapse_s: float) -> None:
        """Leave a piece to its lease; one that the ledger has forgotten would never end, so its slots go back."""
        is_known = self._store.renew(lease, lapse_s)
        if not is_known and piece.age_s() < self._lease_s * VALID_SHARE:
            self._store.release_slots(self.limit_name, piece.slots)

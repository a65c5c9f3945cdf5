"""Leases of slots of one limit, which this process acquires, renews and releases."""

import logging
import time
from math import inf
from typing import Final

import msgspec

from batchline.upstream.quota.fair_share import choose_leases
from batchline.upstream.quota.store import QuotaStore

log = logging.getLogger(__name__)

RENEW_AFTER_SHARE: Final = 1 / 3
"""Part of a lease after which it is renewed: early enough for two more attempts before it expires."""

VALID_SHARE: Final = 0.95
"""Part of a lease within which an unknown lease was not expired but lost by the quota store."""


class SlotLease(msgspec.Struct, eq=False):
    """A lease of slots. `lease_id` is None if the quota store lost the lease but still counts the slots.

    `taken_at` and `renewed_at` are monotonic times, `renewed_wall_at` is the same moment in Unix seconds.
    """

    slots: int
    lease_id: str | None
    taken_at: float
    renewed_at: float
    renewed_wall_at: float

    def age_s(self) -> float:
        """Return the seconds since it was acquired or renewed."""
        # The monotonic clock stops while the machine sleeps, and the wall clock can be set back.
        return max(time.monotonic() - self.renewed_at, time.time() - self.renewed_wall_at)


class SlotLeases:
    """The slots of the limit `limit_name` that this process holds."""

    def __init__(self, limit_name: str, store: QuotaStore, lease_s: float) -> None:
        self.limit_name = limit_name
        self._store = store
        self._lease_s = lease_s
        self._leases: list[SlotLease] = []
        self._releasing: list[SlotLease] = []

    @property
    def held_slots(self) -> int:
        """The number of slots that may be used, without those marked for release."""
        return sum(lease.slots for lease in self._leases)

    @property
    def is_releasing(self) -> bool:
        """True if slots are marked for release."""
        return bool(self._releasing)

    @property
    def is_empty(self) -> bool:
        """True if no slots are held or marked for release."""
        return not self._leases and not self._releasing

    def acquire(self, slots: int) -> bool:
        """Acquire one more lease; return False if not enough slots are free."""
        # Read before the call: the lease must not count as longer than it is in the quota store.
        now, wall_now = time.monotonic(), time.time()
        lease_id = self._store.acquire(self.limit_name, slots, self._lease_s)
        if lease_id is None:
            return False
        self._leases.append(SlotLease(slots, lease_id, now, now, wall_now))
        return True

    def mark_for_release(self, slots: int) -> None:
        """Mark leases of at most `slots` slots in total; `release_marked` releases them in the quota store."""
        chosen_indexes = {*choose_leases([lease.slots for lease in self._leases], slots)}
        self._releasing += [lease for index, lease in enumerate(self._leases) if index in chosen_indexes]
        self._leases = [lease for index, lease in enumerate(self._leases) if index not in chosen_indexes]

    def store_started_at(self) -> float:
        """Return the earliest acquisition of a lease that is still known: since then the quota store lost none."""
        for lease in self._leases:
            if lease.lease_id is not None:
                self._renew_lease(lease, lease.lease_id)
        return min((lease.taken_at for lease in self._leases if lease.lease_id is not None), default=inf)

    def release_marked(self, store_started_at: float = inf) -> None:
        """Release the marked leases; those that fail are tried again at the next call."""
        while self._releasing:
            lease = self._releasing[-1]
            # Prefect ignores the release of a lease that it has lost, and the slots would stay taken. So check a
            # lease that may be lost by renewing it.
            if lease.lease_id is not None and lease.renewed_at < store_started_at:
                self._renew_lease(lease, lease.lease_id)
            if lease not in self._releasing:
                continue
            if lease.lease_id is not None:
                self._store.release(lease.lease_id)
                self._releasing.pop()
            else:
                self._releasing.pop()  # first: releasing slots twice would corrupt the count
                self._store.release_slots(self.limit_name, lease.slots)

    def renew(self, free_slots: int) -> None:
        """Renew the leases that are due, and replace lost ones while enough slots are free."""
        self.drop_expired()
        for lease in list(self._leases):
            if lease.lease_id is None:
                # Acquire before the old slots are released by number: for a moment both count, and none is free.
                if lease.slots <= free_slots and self.acquire(lease.slots):
                    self._leases.remove(lease)
                    self._store.release_slots(self.limit_name, lease.slots)
            elif lease.age_s() > self._lease_s * RENEW_AFTER_SHARE:
                self._renew_lease(lease, lease.lease_id)

    def _renew_lease(self, lease: SlotLease, lease_id: str) -> None:
        now, wall_now = time.monotonic(), time.time()
        if self._store.renew(lease_id, self._lease_s):
            lease.renewed_at, lease.renewed_wall_at = now, wall_now
        elif lease.age_s() < self._lease_s * VALID_SHARE:
            # Not expired yet, so a restarted server has lost it and will never free its slots.
            log.warning(
                "the quota store has lost the lease of %d slots of %s; the slots are kept",
                lease.slots,
                self.limit_name,
            )
            lease.lease_id = None
        else:
            for leases in (self._leases, self._releasing):
                if lease in leases:
                    leases.remove(lease)

    def drop_expired(self) -> None:
        """Drop expired leases, whose slots other processes may have acquired."""
        self._leases = [lease for lease in self._leases if lease.lease_id is None or lease.age_s() < self._lease_s]

    def clear(self) -> None:
        """Drop all leases, without releasing them, of a limit that was deleted."""
        self._leases, self._releasing = [], []

    def release_unused(self, used: int, expiry_s: float, store_started_at: float) -> None:
        """Release all but `used` slots; let the rest expire in `expiry_s`, after the process has ended."""
        self.mark_for_release(self.held_slots - used)
        # Lost leases never expire, so they are released even if their slots are in use.
        self._releasing += [lease for lease in self._leases if lease.lease_id is None]
        self.release_marked(store_started_at)
        for lease in self._leases:
            if lease.lease_id is None or self._store.renew(lease.lease_id, expiry_s):
                continue
            if lease.age_s() < self._lease_s * VALID_SHARE:  # lost, and not expired
                self._store.release_slots(self.limit_name, lease.slots)
        self._leases = []

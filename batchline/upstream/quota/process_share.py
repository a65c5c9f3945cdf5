"""This process's share of one cap: its target, its slot leases, and the fallback without the quota store."""

import logging

from batchline.upstream.quota.demand import Demand, QuotaTarget
from batchline.upstream.quota.fair_share import YIELD_PROBABILITY, compute_target_slots, split_into_leases
from batchline.upstream.quota.slot_leases import RENEW_AFTER_SHARE, SlotLeases
from batchline.upstream.quota.store import LimitState, QuotaStore

log = logging.getLogger(__name__)

PAUSED_POLLS = 2
"""Polls to skip after yielding slots, so that other processes can take them."""


class CapShare:
    """One cap of a pool and the slots of it that this process holds."""

    def __init__(self, quota_target: QuotaTarget, limit_name: str, store: QuotaStore, lease_s: float) -> None:
        self.quota_target = quota_target
        # Long enough that, if the process dies before a renewal, the rest still covers the whole window.
        self.leases = SlotLeases(limit_name, store, max(lease_s, quota_target.window_s / (1 - RENEW_AFTER_SHARE)))
        self.limit = 0
        self.target_slots = 0
        self.is_shared = True
        self._store = store
        self._state: LimitState | None = None
        self._processes = 1
        self._paused_polls = 0
        self._warned_limit: int | None = None

    @property
    def limit_name(self) -> str:
        """The name of the limit in the quota store."""
        return self.leases.limit_name

    @property
    def is_known(self) -> bool:
        """True once the limit has been read."""
        return self._state is not None

    def observe(self, state: LimitState, processes: int) -> None:
        """Update the state of the limit, and renew the leases that are due."""
        # A limit that was deleted and created again counts none of our slots.
        if self._state is not None and self._state.identity != state.identity:
            self.leases.clear()
        self._state, self._processes = state, processes
        self.is_shared = state.is_active
        self.limit = min(state.limit, self.quota_target.cap)
        if state.limit < self.quota_target.cap and self._warned_limit != state.limit:
            self._warned_limit = state.limit
            log.warning(
                "limit %s is %d and the settings allow %d %s; the lower one applies. To raise it: %s",
                *(self.limit_name, state.limit, self.quota_target.cap, self.quota_target.description),
                self._store.change_command(self.limit_name, self.quota_target.cap),
            )
        self.leases.renew(max(0, state.limit - state.taken))

    def update_target(self, demand: Demand, random_value: float) -> None:
        """Compute how many slots to hold; `random_value` is from 0 to 1."""
        if self._state is None:
            return
        held_slots, taken_slots = self.leases.held_slots, self._state.taken
        target_slots = compute_target_slots(
            limit=self.limit,
            taken_slots=taken_slots,
            held_slots=held_slots,
            processes=self._processes,
            desired=min(demand.desired, self.quota_target.cap),
            random_value=random_value,
            minimum=demand.minimum,
        )
        if self._paused_polls:
            self._paused_polls -= 1
            target_slots = min(target_slots, held_slots)
        elif target_slots < held_slots and random_value < YIELD_PROBABILITY:
            self._paused_polls = PAUSED_POLLS
        self.target_slots = min(target_slots, held_slots + max(0, self._state.limit - taken_slots))

    def shrink(self) -> None:
        """Mark unused slots above the target for release, and apply the rest. Runs on the dispatcher's loop."""
        if not self.is_shared:
            self.quota_target.apply(None, 0)
            return
        if self.limit:  # Prefect cannot release slots of a limit of 0: it divides by the limit
            self.leases.mark_for_release(self.leases.held_slots - max(self.target_slots, self.quota_target.used()))
        self.apply()

    def apply(self) -> None:
        """Apply the held slots to the pool. Runs on the dispatcher's loop."""
        held_slots = self.leases.held_slots if self.limit else 0
        # While slots move between processes, none is slowed down below the equal share.
        pace = max(self.target_slots, self.limit // self._processes)
        self.quota_target.apply(held_slots, pace if self.target_slots else 0)

    def leases_to_acquire(self) -> list[int]:
        """Return the sizes of the leases to acquire."""
        return split_into_leases(self.target_slots - self.leases.held_slots, self.limit) if self.is_shared else []

    def use_fallback(self, *, has_timed_out: bool) -> None:
        """Continue while the quota store is down: with valid leases, then with an equal share.

        If no limit was ever read, nothing is sent until `has_timed_out`, then up to the configured cap. Runs on
        the dispatcher's loop.
        """
        self.leases.drop_expired()
        held_slots = self.leases.held_slots
        if held_slots == 0 and (self.is_known or has_timed_out):
            limit = self.limit if self.is_known else self.quota_target.cap
            held_slots = min(limit, max(1, limit // self._processes))
        self.quota_target.apply(held_slots, held_slots)

    def blocked_reason(self) -> str | None:
        """Return the reason to display if this process has no slots and can get none, or None."""
        if not self.is_known or not self.is_shared:
            return None
        if not self.limit:
            return (
                f"limit {self.limit_name} is 0; to continue: {self._store.change_command(self.limit_name, None)}"
            )
        if self.leases.held_slots:
            return None
        held = f"{self.limit:,} {self.quota_target.description}"
        return f"other processes have all of its {held} (limit {self.limit_name})"

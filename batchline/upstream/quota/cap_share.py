"""This process's portion of one cap: how it is decided, grows and shrinks, and what is done without the ledger."""

import logging

from batchline.upstream.quota.demand import Demand, QuotaTarget
from batchline.upstream.quota.fair_share import YIELD_PROBABILITY, compute_target_slots, split_into_leases
from batchline.upstream.quota.slot_leases import RENEW_AFTER_SHARE, SlotLeases
from batchline.upstream.quota.store import LimitState, QuotaStore

log = logging.getLogger(__name__)

PAUSED_POLLS = 2
"""Looks in which a process that has gone down for others takes nothing, so that they do."""


class CapShare:
    """One cap of a lane with the slots that are held of it."""

    def __init__(self, quota_target: QuotaTarget, limit_name: str, store: QuotaStore, lease_s: float) -> None:
        self.quota_target = quota_target
        # What remains of it at a process's death is at least what was not yet due for renewal.
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
        """The limit's name."""
        return self.leases.limit_name

    @property
    def is_known(self) -> bool:
        """Whether the limit has been seen."""
        return self._state is not None

    def observe(self, state: LimitState, processes: int) -> None:
        """Note how the limit stands, and renew what is held of it."""
        if self._state is not None and self._state.identity != state.identity:
            self.leases.clear()
        self._state, self._processes = state, processes
        self.is_shared = state.is_active
        self.limit = min(state.limit, self.quota_target.cap)
        self._warn_if_limited(state)
        self.leases.renew(max(0, state.limit - state.taken))

    def _warn_if_limited(self, state: LimitState) -> None:
        """Say once that less is allowed than the settings have."""
        if state.limit >= self.quota_target.cap or self._warned_limit == state.limit:
            return
        self._warned_limit = state.limit
        log.warning(
            "limit %s is %d, and the settings allow %d %s; the smaller holds. To raise it: %s",
            *(self.limit_name, state.limit, self.quota_target.cap, self.quota_target.description),
            self._store.change_command(self.limit_name, self.quota_target.cap),
        )

    def update_target(self, demand: Demand, random_value: float) -> None:
        """Set the target."""
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
        """Set aside what is beyond the target and not used, and go on with the rest. On the caller's loop."""
        if not self.is_shared:
            self.quota_target.apply(None, 0)
            return
        if self.limit:  # of a limit of 0, Prefect takes nothing back: it divides by it
            self.leases.mark_for_release(self.leases.held_slots - max(self.target_slots, self.quota_target.used()))
        self.apply()

    def apply(self) -> None:
        """Go on with what is held. On the caller's loop."""
        held_slots = self.leases.held_slots if self.limit else 0
        pace = max(self.target_slots, self.limit // self._processes)
        self.quota_target.apply(held_slots, pace if self.target_slots else 0)

    def leases_to_acquire(self) -> list[int]:
        """The pieces that are to be taken."""
        return split_into_leases(self.target_slots - self.leases.held_slots, self.limit) if self.is_shared else []

    def use_fallback(self, *, has_timed_out: bool) -> None:
        """Go on while the ledger does not answer: with what is leased, and after that with the last fair share.

        Where no limit has been seen, nothing is sent until `started`, and then as much as the settings allow. On
        the caller's loop.
        """
        self.leases.drop_expired()
        held_slots = self.leases.held_slots
        if held_slots == 0 and (self.is_known or has_timed_out):
            limit = self.limit if self.is_known else self.quota_target.cap
            held_slots = min(limit, max(1, limit // self._processes))
        self.quota_target.apply(held_slots, held_slots)

    def blocked_reason(self) -> str | None:
        """What to tell people while nothing of the cap is to be had."""
        if not self.is_known or not self.is_shared:
            return None
        if not self.limit:
            return f"limit {self.limit_name} is 0; to go on: {self._store.change_command(self.limit_name, None)}"
        if self.leases.held_slots:
            return None
        held = f"{self.limit:,} {self.quota_target.description}"
        return f"other processes have all of its {held} (limit {self.limit_name})"

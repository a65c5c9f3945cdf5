"""This process's portion of one cap: how it is decided, grows and shrinks, and what is done without the ledger."""

import logging

from batchline.upstream.budgets import Budget, Demand
from batchline.upstream.ledger import Ledger, Standing
from batchline.upstream.shares import YIELDS, pieces, share
from batchline.upstream.slots import RENEWED_AT, Slots

log = logging.getLogger(__name__)

PAUSED_LOOKS = 2
"""Looks in which a process that has gone down for others takes nothing, so that they do."""


class Portion:
    """One cap of a lane with the slots that are held of it."""

    def __init__(self, budget: Budget, name: str, ledger: Ledger, lease_s: float) -> None:
        self.budget = budget
        # What remains of it at a process's death is at least what was not yet due for renewal.
        self.slots = Slots(name, ledger, max(lease_s, budget.counts_for_s / (1 - RENEWED_AT)))
        self.limit = 0
        self.target = 0
        self.is_shared = True
        self._ledger = ledger
        self._known: Standing | None = None
        self._processes = 1
        self._pause = 0
        self._warned_of: int | None = None

    @property
    def name(self) -> str:
        """The limit's name."""
        return self.slots.name

    @property
    def is_known(self) -> bool:
        """Whether the limit has been seen."""
        return self._known is not None

    def see(self, standing: Standing, processes: int) -> None:
        """Note how the limit stands, and renew what is held of it."""
        if self._known is not None and self._known.identity != standing.identity:
            self.slots.forget()
        self._known, self._processes = standing, processes
        self.is_shared = standing.in_force
        self.limit = min(standing.limit, self.budget.cap)
        self._warn(standing)
        self.slots.renew(max(0, standing.limit - standing.taken))

    def _warn(self, standing: Standing) -> None:
        """Say once that less is allowed than the settings have."""
        if standing.limit >= self.budget.cap or self._warned_of == standing.limit:
            return
        self._warned_of = standing.limit
        log.warning(
            "limit %s is %d, and the settings allow %d %s; the smaller holds. To raise it: %s",
            *(self.name, standing.limit, self.budget.cap, self.budget.words),
            self._ledger.how_to_change(self.name, self.budget.cap),
        )

    def decide(self, demand: Demand, luck: float) -> None:
        """Set the target."""
        if self._known is None:
            return
        held, taken = self.slots.held, self._known.taken
        target = share(
            limit=self.limit,
            taken=taken,
            held=held,
            processes=self._processes,
            wanted=min(demand.wanted, self.budget.cap),
            luck=luck,
            least=demand.least,
        )
        if self._pause:
            self._pause -= 1
            target = min(target, held)
        elif target < held and luck < YIELDS:
            self._pause = PAUSED_LOOKS
        self.target = min(target, held + max(0, self._known.limit - taken))

    def shrink(self) -> None:
        """Set aside what is beyond the target and not used, and go on with the rest. On the caller's loop."""
        if not self.is_shared:
            self.budget.allot(None, 0)
            return
        if self.limit:  # of a limit of 0, Prefect takes nothing back: it divides by it
            self.slots.set_aside(self.slots.held - max(self.target, self.budget.used()))
        self.allot()

    def allot(self) -> None:
        """Go on with what is held. On the caller's loop."""
        held = self.slots.held if self.limit else 0
        pace = max(self.target, self.limit // self._processes)
        self.budget.allot(held, pace if self.target else 0)

    def wanted_pieces(self) -> list[int]:
        """The pieces that are to be taken."""
        return pieces(self.target - self.slots.held, self.limit) if self.is_shared else []

    def do_without(self, *, started: bool) -> None:
        """Go on while the ledger does not answer: with what is leased, and after that with the last fair share.

        Where no limit has been seen, nothing is sent until `started`, and then as much as the settings allow. On
        the caller's loop.
        """
        self.slots.drop_lapsed()
        held = self.slots.held
        if held == 0 and (self.is_known or started):
            limit = self.limit if self.is_known else self.budget.cap
            held = min(limit, max(1, limit // self._processes))
        self.budget.allot(held, held)

    def wait(self) -> str | None:
        """What to tell people while nothing of the cap is to be had."""
        if not self.is_known or not self.is_shared:
            return None
        if not self.limit:
            return f"limit {self.name} is 0; to go on: {self._ledger.how_to_change(self.name, None)}"
        if self.slots.held:
            return None
        return f"other processes have all of its {self.limit:,} {self.budget.words} (limit {self.name})"

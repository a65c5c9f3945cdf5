"""The seam to whoever counts what all processes hold of an upstream's caps."""

from typing import Protocol

import msgspec

from batchline.models.upstreams import Upstream


class Standing(msgspec.Struct, frozen=True):
    """A limit as it stands: its slots, those that are taken by anybody, and whether it is in force.

    One that is deleted and made anew has another `identity`, and knows nothing of what was taken before.
    """

    limit: int
    taken: int
    in_force: bool
    identity: str


class LedgerFault(Exception):
    """The ledger does not answer, or not as it should."""


class Ledger(Protocol):
    """Limits with slots that processes take under leases; all of it may raise `LedgerFault`."""

    def name(self, upstream: Upstream, what: str) -> str:
        """The name of the limit on that of the upstream."""

    def look(self, names: list[str]) -> dict[str, Standing]:
        """The limits of those names; those that do not exist are left out."""

    def create(self, name: str, limit: int) -> None:
        """Make a limit, unless it exists."""

    def take(self, name: str, slots: int, lease_s: float) -> str | None:
        """Take slots for so long; the lease, or none where not so many are free."""

    def renew(self, lease: str, lease_s: float) -> bool:
        """Prolong a lease; false where it is not known (any more)."""

    def give_back(self, lease: str) -> None:
        """Give back what was taken under a lease; one that is not known is no fault."""

    def give_back_slots(self, name: str, slots: int) -> None:
        """Give back slots whose lease is no longer known."""

    def report_alive(self, name: str) -> None:
        """Let the limit show that a process which holds some of it lives."""

    def how_to_change(self, name: str, limit: int | None) -> str:
        """The command by which a person sets the limit."""

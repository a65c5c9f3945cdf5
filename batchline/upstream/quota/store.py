"""The seam to whoever counts what all processes hold of an upstream's caps."""

from typing import Protocol

import msgspec

from batchline.models.upstreams import Upstream


class LimitState(msgspec.Struct, frozen=True):
    """A limit as it stands: its slots, those that are taken by anybody, and whether it is in force.

    One that is deleted and made anew has another `identity`, and knows nothing of what was taken before.
    """

    limit: int
    taken: int
    is_active: bool
    identity: str


class QuotaStoreError(Exception):
    """The ledger does not answer, or not as it should."""


class QuotaStore(Protocol):
    """Limits with slots that processes take under leases; all of it may raise `QuotaStoreError`."""

    def limit_name(self, upstream: Upstream, kind: str) -> str:
        """The name of the limit on that of the upstream."""

    def read_limits(self, names: list[str]) -> dict[str, LimitState]:
        """The limits of those names; those that do not exist are left out."""

    def create_limit(self, name: str, limit: int) -> None:
        """Make a limit, unless it exists."""

    def acquire(self, name: str, slots: int, lease_s: float) -> str | None:
        """Take slots for so long; the lease, or none where not so many are free."""

    def renew(self, lease_id: str, lease_s: float) -> bool:
        """Prolong a lease; false where it is not known (any more)."""

    def release(self, lease_id: str) -> None:
        """Give back what was taken under a lease; one that is not known is no fault."""

    def release_slots(self, name: str, slots: int) -> None:
        """Give back slots whose lease is no longer known."""

    def report_alive(self, name: str) -> None:
        """Let the limit show that a process which holds some of it lives."""

    def change_command(self, name: str, limit: int | None) -> str:
        """The command by which a person sets the limit."""

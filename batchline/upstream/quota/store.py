"""Interface of the shared store of quota leases."""

from typing import Protocol

import msgspec

from batchline.models.upstreams import Upstream


class LimitState(msgspec.Struct, frozen=True):
    """The state of a limit; `taken` counts the slots of all processes, and only an active limit is enforced.

    A limit that was deleted and created again has another `identity`, and no slots of it are taken.
    """

    limit: int
    taken: int
    is_active: bool
    identity: str


class QuotaStoreError(Exception):
    """Raised if the quota store does not answer, or answers unexpectedly."""


class QuotaStore(Protocol):
    """Limits whose slots processes hold under leases; every method may raise `QuotaStoreError`."""

    def limit_name(self, upstream: Upstream, kind: str) -> str:
        """Return the name of the upstream's limit of that kind."""

    def read_limits(self, names: list[str]) -> dict[str, LimitState]:
        """Return the limits by name, without those that do not exist."""

    def create_limit(self, name: str, limit: int) -> None:
        """Create a limit unless it exists."""

    def acquire(self, name: str, slots: int, lease_s: float) -> str | None:
        """Acquire slots; return the id of the lease, or None if not enough slots are free."""

    def renew(self, lease_id: str, lease_s: float) -> bool:
        """Renew a lease; return False if it is unknown or has expired."""

    def release(self, lease_id: str) -> None:
        """Release the slots of a lease; an unknown lease is ignored."""

    def release_slots(self, name: str, slots: int) -> None:
        """Release slots whose lease was lost."""

    def report_alive(self, name: str) -> None:
        """Record in the limit that a process which holds slots of it is alive."""

    def change_command(self, name: str, limit: int | None) -> str:
        """Return the command that sets the limit, for display."""

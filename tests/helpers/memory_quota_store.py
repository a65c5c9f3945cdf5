"""A ledger in memory, which keeps leases as Prefect's server does and can forget them, end, and fail."""

import itertools
import threading
import time
from dataclasses import dataclass, field

from batchline.models.upstreams import Upstream
from batchline.upstream.quota.store import LimitState, QuotaStoreError


@dataclass
class Limit:
    limit: int
    identity: str
    taken: int = 0
    in_force: bool = True
    most_taken: int = 0


@dataclass
class Lease:
    limit: Limit
    slots: int
    ends_at: float


@dataclass
class MemoryQuotaStore:
    """A quota store for any number of dispatchers of one test; `fails` makes every call fail."""

    limits: dict[str, Limit] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    fails: bool = False
    calls: int = 0
    reported: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    def __enter__(self) -> "MemoryQuotaStore":
        return self

    def __exit__(self, *_: object) -> None:
        """Serve on: others may use it."""

    def taken(self, what: str) -> int:
        """Slots that are taken of the limit on that."""
        with self._lock:
            self._end_leases()
            return sum(limit.taken for name, limit in self.limits.items() if name.endswith(what))

    def set(self, what: str, **fields: object) -> None:
        """Change the limit on that, as a person does."""
        with self._lock:
            for limit in (limit for name, limit in self.limits.items() if name.endswith(what)):
                for name, value in fields.items():
                    setattr(limit, name, value)

    def forget_leases(self) -> None:
        """Forget all leases, as a server does that keeps them in memory and restarts."""
        with self._lock:
            self.leases.clear()

    def _end_leases(self) -> None:
        now = time.monotonic()
        for name, lease in list(self.leases.items()):
            if lease.ends_at < now:
                lease.limit.taken -= lease.slots
                del self.leases[name]

    def _begin_call(self) -> None:
        self.calls += 1
        if self.fails:
            raise QuotaStoreError("it is made to fail")
        self._end_leases()

    def limit_name(self, upstream: Upstream, kind: str) -> str:
        return f"{upstream.name}-{kind}"

    def read_limits(self, names: list[str]) -> dict[str, LimitState]:
        with self._lock:
            self._begin_call()
            found = {name: limit for name, limit in self.limits.items() if name in names}
            return {
                name: LimitState(limit.limit, limit.taken, limit.in_force, limit.identity)
                for name, limit in found.items()
            }

    def create_limit(self, name: str, limit: int) -> None:
        with self._lock:
            self._begin_call()
            self.limits.setdefault(name, Limit(limit, str(next(self._numbers))))

    def acquire(self, name: str, slots: int, lease_s: float) -> str | None:
        with self._lock:
            self._begin_call()
            limit = self.limits[name]
            if limit.taken + slots > limit.limit:
                return None
            limit.taken += slots
            limit.most_taken = max(limit.most_taken, limit.taken)
            lease_id = str(next(self._numbers))
            self.leases[lease_id] = Lease(limit, slots, time.monotonic() + lease_s)
            return lease_id

    def renew(self, lease_id: str, lease_s: float) -> bool:
        with self._lock:
            self._begin_call()
            if lease_id in self.leases:
                self.leases[lease_id].ends_at = time.monotonic() + lease_s
            return lease_id in self.leases

    def release(self, lease_id: str) -> None:
        with self._lock:
            self._begin_call()
            if lease_id in self.leases and self.leases[lease_id].limit.limit == 0:
                raise QuotaStoreError("slots are divided by the limit, as Prefect does")
            if (known := self.leases.pop(lease_id, None)) is not None:
                known.limit.taken -= known.slots

    def release_slots(self, name: str, slots: int) -> None:
        with self._lock:
            self._begin_call()
            self.limits[name].taken = max(0, self.limits[name].taken - slots)

    def report_alive(self, name: str) -> None:
        """Note that the process lives."""
        with self._lock:
            self._begin_call()
            self.reported.append(name)

    def change_command(self, name: str, limit: int | None) -> str:
        return f"set {name} to {limit}"

"""Keeps this process's shares of one upstream's caps in line with its fair share."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

import msgspec

from batchline.upstream.pool import UpstreamPool
from batchline.upstream.quota.demand import Demand, quota_targets
from batchline.upstream.quota.process_share import CapShare
from batchline.upstream.quota.slot_leases import SlotLeases
from batchline.upstream.quota.store import LimitState, QuotaStore, QuotaStoreError

log = logging.getLogger(__name__)

PROCESSES: Final = "processes"
"""Kind of the limit of which each process that has work holds one slot."""

MAX_PROCESSES: Final = 1_000_000
ALIVE_INTERVAL_S: Final = 60.0
"""Seconds between reports that a process is alive. If none comes for minutes, housekeeping frees the slots."""

REPORT_AFTER_S: Final = 5.0
"""Seconds of waiting for a share before the reason is displayed."""


class QuotaTiming(msgspec.Struct, frozen=True):
    """Intervals and timeouts of quota sharing, in seconds.

    A process polls every `poll_s` while shares change, up to every `max_poll_s` while they do not. It releases all
    after `idle_s` without work, and sends after `start_timeout_s` even if the quota store has never answered.
    """

    poll_s: float = 1.0
    max_poll_s: float = 3.0
    idle_s: float = 5.0
    start_timeout_s: float = 30.0
    lease_s: float = 60.0
    """Prefect's minimum. Until then, no process can use the slots of one that was killed."""

    expiry_s: float = 60.0
    """Time until slots that were spent before the process ended are free: the whole minute of the rate limits."""


class UpstreamQuota:
    """The shares of one pool in its caps. Used by the coordinator's thread, not by the dispatcher's loop."""

    def __init__(
        self,
        pool: UpstreamPool,
        store: QuotaStore,
        timing: QuotaTiming,
        run_on_loop: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._store = store
        self._timing = timing
        self._run_on_loop = run_on_loop
        self._wake = wake
        self._presence_lease = SlotLeases(store.limit_name(pool.upstream, PROCESSES), store, timing.lease_s)
        self._presence_state: LimitState | None = None
        self._shares = [
            CapShare(target, store.limit_name(pool.upstream, target.kind), store, timing.lease_s)
            for target in quota_targets(pool)
        ]
        self._demands: list[Demand] = []
        self._started_at = self._waiting_since = time.monotonic()
        self._last_work_at = self._last_reported_at = float("-inf")
        self._is_disconnected = self._is_shrinking = False
        self._poll_s = timing.poll_s
        self._random = Random()  # noqa: S311 - decides who yields, not a secret

    def sync(self) -> float:
        """Adjust the shares; return the seconds until the next poll."""
        try:
            self._run_on_loop(self._measure_demand)
            if not self._has_work and self._holds_nothing:
                return threading.TIMEOUT_MAX
            has_changed = self._rebalance()
        except QuotaStoreError as fault:
            self._on_store_error(str(fault))
            return self._timing.max_poll_s
        except TimeoutError:
            self._on_store_error("this process is too busy")
            return self._timing.poll_s
        except Exception as fault:  # if sharing stopped here, the processes would exceed the cap from now on
            if not self._is_disconnected:
                log.exception("adjusting the shares of upstream %s failed", self._pool.upstream.name)
            self._on_store_error(str(fault))
            return self._timing.max_poll_s
        if self._is_disconnected:
            self._is_disconnected = False
            log.info("the limits of upstream %s are shared again", self._pool.upstream.name)
        self._poll_s = self._next_poll_s(has_changed=has_changed)
        # Jitter, so that processes which started together do not poll together.
        return self._poll_s * self._random.uniform(0.8, 1.2)

    def _next_poll_s(self, *, has_changed: bool) -> float:
        """Return a short interval if a share begins to shrink, since others wait for it; else a longer one."""
        poll_s, was_shrinking = self._timing.poll_s, self._is_shrinking
        self._is_shrinking = any(share.leases.held_slots > share.target_slots for share in self._shares)
        if self._is_shrinking:
            return poll_s if was_shrinking else poll_s / 4
        if has_changed or any(share.blocked_reason() for share in self._shares):
            return poll_s
        return min(self._timing.max_poll_s, max(poll_s, self._poll_s * 1.5))

    @property
    def _has_work(self) -> bool:
        return time.monotonic() - self._last_work_at < self._timing.idle_s

    @property
    def _holds_nothing(self) -> bool:
        return self._presence_lease.is_empty and all(share.leases.is_empty for share in self._shares)

    def _measure_demand(self) -> None:
        if self._pool.scheduler.in_flight_calls or self._pool.scheduler.has_pending():
            self._last_work_at = time.monotonic()
        has_work = self._has_work
        self._demands = [share.quota_target.demand(has_work=has_work) for share in self._shares]

    def _rebalance(self) -> bool:
        """Read the limits, update the targets, release and acquire slots; return True if a share changed."""
        states = self._read_limits()
        processes = self._count_processes(states[self._presence_lease.limit_name])
        for share in self._shares:
            share.observe(states[share.limit_name], processes)
        held_before = [share.leases.held_slots for share in self._shares]
        for share, demand in zip(self._shares, self._demands, strict=True):
            share.update_target(demand, self._random.random())
        # In this order: the pool stops using slots before they are released, and uses new ones once acquired.
        self._run_on_loop(self._shrink_shares)
        if any(share.leases.is_releasing for share in self._shares):
            store_started_at = self._presence_lease.store_started_at()
            for share in self._shares:
                share.leases.release_marked(store_started_at)
        self._acquire_missing()
        self._run_on_loop(self._publish)
        return held_before != [share.leases.held_slots for share in self._shares]

    def create_missing_limits(self) -> None:
        """Create missing limits before there is work, which can then start sooner."""
        with suppress(QuotaStoreError):
            self._read_limits()

    def _read_limits(self) -> dict[str, LimitState]:
        """Return the state of all limits; missing ones are created."""
        caps = {share.limit_name: share.quota_target.cap for share in self._shares}
        caps[self._presence_lease.limit_name] = MAX_PROCESSES
        states = self._store.read_limits(list(caps))
        if missing := caps.keys() - states.keys():
            for name in missing:
                self._store.create_limit(name, caps[name])
            states = self._store.read_limits(list(caps))
        if still_missing := caps.keys() - states.keys():
            raise QuotaStoreError(f"limit {min(still_missing)} was created but does not exist")
        return states

    def _count_processes(self, state: LimitState) -> int:
        """Return the number of processes that have work, at least 1; acquires or releases this process's slot."""
        if self._presence_state is not None and self._presence_state.identity != state.identity:
            self._presence_lease.clear()
        self._presence_state = state
        self._presence_lease.renew(free_slots=1)
        held_before = self._presence_lease.held_slots
        if self._has_work and not held_before:
            self._last_reported_at = time.monotonic()  # acquiring updates the limit, which counts as a report
            self._presence_lease.acquire(1)
        elif held_before and self._has_work and time.monotonic() - self._last_reported_at >= ALIVE_INTERVAL_S:
            self._last_reported_at = time.monotonic()
            self._store.report_alive(self._presence_lease.limit_name)
        elif held_before and not self._has_work:
            self._presence_lease.mark_for_release(held_before)
            self._presence_lease.release_marked()
        return max(1, state.taken + self._presence_lease.held_slots - held_before)

    def _shrink_shares(self) -> None:
        for share in self._shares:
            share.shrink()

    def _acquire_missing(self) -> None:
        """Acquire missing slots, one lease of each cap in turn, since sending needs some of every cap."""
        queues = [(share, share.leases_to_acquire()) for share in self._shares]
        while queues := [(share, sizes) for share, sizes in queues if sizes]:
            for share, sizes in queues:
                if share.leases.acquire(sizes.pop(0)):
                    self._run_on_loop(share.apply)
                else:
                    sizes.clear()

    def _publish(self) -> None:
        """Set the pool's callback for new work and its reason for waiting."""
        self._pool.on_demand = self._wake if self._holds_nothing else None
        now = time.monotonic()
        reason = next((reason for share in self._shares if (reason := share.blocked_reason())), None)
        if reason is None or not self._pool.scheduler.has_pending():
            self._waiting_since = now
        is_late = now - self._waiting_since >= REPORT_AFTER_S
        self._pool.wait_reason = (
            f"upstream {self._pool.upstream.name} waits: {reason}" if reason and is_late else None
        )

    def _on_store_error(self, problem: str) -> None:
        if not self._is_disconnected:
            self._is_disconnected = True
            log.warning(
                "the limits of upstream %s cannot be shared at the moment: %s. This process keeps its share until "
                "the leases expire, and then uses the last known share",
                *(self._pool.upstream.name, problem),
            )
        has_timed_out = time.monotonic() - self._started_at > self._timing.start_timeout_s
        with suppress(TimeoutError):  # the previous share applies until the loop has time
            self._run_on_loop(lambda: self._use_fallback(has_timed_out=has_timed_out))

    def _use_fallback(self, *, has_timed_out: bool) -> None:
        for share in self._shares:
            share.use_fallback(has_timed_out=has_timed_out)

    def release(self) -> None:
        """Release the slots that are not in use before the process ends; if that fails, they expire."""
        try:
            self._run_on_loop(self._measure_demand)
            store_started_at = self._presence_lease.store_started_at()
            for share, demand in zip(self._shares, self._demands, strict=True):
                share.leases.release_unused(demand.used, self._timing.expiry_s, store_started_at)
            self._presence_lease.release_unused(0, 0.0, store_started_at)
        except (QuotaStoreError, TimeoutError) as fault:
            log.debug("the slots of upstream %s are not released, but expire: %s", self._pool.upstream.name, fault)

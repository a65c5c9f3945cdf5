"""One lane's portions of its caps, and this process's place among those that have work for the upstream."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

import msgspec

from batchline.upstream.budgets import Demand, budgets_of
from batchline.upstream.lane import Lane
from batchline.upstream.ledger import Ledger, LedgerFault, Standing
from batchline.upstream.portion import Portion
from batchline.upstream.slots import Slots

log = logging.getLogger(__name__)

PROCESSES: Final = "processes"
"""The limit of which each process that has work holds one slot."""

MANY_PROCESSES: Final = 1_000_000
ALIVE_S: Final = 60.0
"""Between reports of a process that it lives. If none reports for minutes, housekeeping frees the slots."""

TOLD_AFTER_S: Final = 5.0
"""Waiting for a share is told of after so long: it may be a moment's."""


class Timing(msgspec.Struct, frozen=True):
    """When a process looks and how long it keeps what it has, in seconds.

    It looks every `look_s` while something moves and every `calm_s` while nothing does, gives all back when it had
    no work for `idle_s`, and begins to send after `start_s` though no ledger has answered yet.
    """

    look_s: float = 1.0
    calm_s: float = 3.0
    idle_s: float = 5.0
    start_s: float = 30.0
    lease_s: float = 60.0
    """Prefect's shortest: so long nobody has what a process held that was killed."""

    lapse_s: float = 60.0
    """Of what a process spent in the minute before its end: all of that minute, and again Prefect's shortest."""


class LaneShare:
    """Keeps what a lane may do in line with what is held for it. Used by one thread, beside the caller's loop."""

    def __init__(
        self,
        lane: Lane,
        ledger: Ledger,
        timing: Timing,
        on_loop: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._lane = lane
        self._ledger = ledger
        self._timing = timing
        self._on_loop = on_loop
        self._wake = wake
        self._presence = Slots(ledger.name(lane.upstream, PROCESSES), ledger, timing.lease_s)
        self._presence_known: Standing | None = None
        self._portions = [
            Portion(budget, ledger.name(lane.upstream, budget.what), ledger, timing.lease_s)
            for budget in budgets_of(lane)
        ]
        self._demands: list[Demand] = []
        self._began = self._waits_since = time.monotonic()
        self._worked_at = self._reported_at = float("-inf")
        self._is_cut_off = self._is_leaving = False
        self._pause_s = timing.look_s
        self._random = Random()  # noqa: S311 - who goes first, not a secret

    def look(self) -> float:
        """Bring what is held in line with what it should be; the seconds until the next look."""
        try:
            self._on_loop(self._measure)
            if not self._has_work and self._is_away:
                return threading.TIMEOUT_MAX
            moved = self._settle()
        except LedgerFault as fault:
            self._go_on_without(str(fault))
            return self._timing.calm_s
        except TimeoutError:
            self._go_on_without("this process is too busy")
            return self._timing.look_s
        except Exception as fault:  # a share that is given up once is exceeded by all processes ever after
            if not self._is_cut_off:
                log.exception("budgets of upstream %s: a look failed", self._lane.upstream.name)
            self._go_on_without(str(fault))
            return self._timing.calm_s
        if self._is_cut_off:
            self._is_cut_off = False
            log.info("budgets of upstream %s are shared again", self._lane.upstream.name)
        self._pause_s = self._next_pause_s(moved=moved)
        return self._pause_s * self._random.uniform(0.8, 1.2)

    def _next_pause_s(self, *, moved: bool) -> float:
        """Short where a share begins to shrink, as others wait for it; longer and longer once nothing moves."""
        look_s, was_leaving = self._timing.look_s, self._is_leaving
        self._is_leaving = any(portion.slots.held > portion.target for portion in self._portions)
        if self._is_leaving:
            return look_s if was_leaving else look_s / 4
        if moved or any(portion.wait() for portion in self._portions):
            return look_s
        return min(self._timing.calm_s, max(look_s, self._pause_s * 1.5))

    @property
    def _has_work(self) -> bool:
        return time.monotonic() - self._worked_at < self._timing.idle_s

    @property
    def _is_away(self) -> bool:
        return self._presence.is_empty and all(portion.slots.is_empty for portion in self._portions)

    def _measure(self) -> None:
        if self._lane.active or self._lane.has_pending():
            self._worked_at = time.monotonic()
        has_work = self._has_work
        self._demands = [portion.budget.demand(has_work=has_work) for portion in self._portions]

    def _settle(self) -> bool:
        """See how the limits stand, decide, give back and take; whether anything moved."""
        self._see()
        before = [portion.slots.held for portion in self._portions]
        for portion, demand in zip(self._portions, self._demands, strict=True):
            portion.decide(demand, self._random.random())
        self._on_loop(self._shrink)
        self._give_back()
        self._grow()
        self._on_loop(self._tell)
        return before != [portion.slots.held for portion in self._portions]

    def prepare(self) -> None:
        """Make what limits are missing before there is work, which then begins the sooner."""
        with suppress(LedgerFault):
            self._standings()

    def _standings(self) -> dict[str, Standing]:
        """How all limits stand; those that are missing are made."""
        caps = {portion.name: portion.budget.cap for portion in self._portions}
        caps[self._presence.name] = MANY_PROCESSES
        standings = self._ledger.look(list(caps))
        if missing := caps.keys() - standings.keys():
            for name in missing:
                self._ledger.create(name, caps[name])
            standings = self._ledger.look(list(caps))
        if still := caps.keys() - standings.keys():
            raise LedgerFault(f"there is no limit {min(still)}, though it was made")
        return standings

    def _see(self) -> None:
        """Look at all limits, and take a place among the processes or leave it."""
        standings = self._standings()
        processes = self._present(standings[self._presence.name])
        for portion in self._portions:
            portion.see(standings[portion.name], processes)

    def _present(self, standing: Standing) -> int:
        """How many processes have work, this one among them while it has."""
        if self._presence_known is not None and self._presence_known.identity != standing.identity:
            self._presence.forget()
        self._presence_known = standing
        self._presence.renew(free=1)
        joined = self._presence.held
        if self._has_work and not joined:
            self._reported_at = time.monotonic()  # what is taken changes the limit, which is a report as well
            self._presence.take(1)
        elif joined and self._has_work and time.monotonic() - self._reported_at >= ALIVE_S:
            self._reported_at = time.monotonic()
            self._ledger.report_alive(self._presence.name)
        elif joined and not self._has_work:
            self._presence.set_aside(joined)
            self._presence.give_back()
        return max(1, standing.taken + self._presence.held - joined)

    def _shrink(self) -> None:
        for portion in self._portions:
            portion.shrink()

    def _give_back(self) -> None:
        if any(portion.slots.is_leaving for portion in self._portions):
            remembered_since = self._presence.remembered_since()
            for portion in self._portions:
                portion.slots.give_back(remembered_since)

    def _grow(self) -> None:
        """Take what is missing, a piece of each cap in turn: sending begins with the first of each."""
        queues = [(portion, portion.wanted_pieces()) for portion in self._portions]
        while queues := [(portion, sizes) for portion, sizes in queues if sizes]:
            for portion, sizes in queues:
                if portion.slots.take(sizes.pop(0)):
                    self._on_loop(portion.allot)
                else:
                    sizes.clear()

    def _tell(self) -> None:
        """Let the lane know whom to call and what it waits for."""
        self._lane.on_need = self._wake if self._is_away else None
        now = time.monotonic()
        why = next((why for portion in self._portions if (why := portion.wait())), None)
        if why is None or not self._lane.has_pending():
            self._waits_since = now
        late = now - self._waits_since >= TOLD_AFTER_S
        self._lane.waits_for = f"upstream {self._lane.upstream.name} waits: {why}" if why and late else None

    def _go_on_without(self, fault: str) -> None:
        if not self._is_cut_off:
            self._is_cut_off = True
            log.warning(
                "budgets of upstream %s cannot be shared at the moment: %s. What is held is kept until its leases "
                "end; then the last known share is used",
                *(self._lane.upstream.name, fault),
            )
        started = time.monotonic() - self._began > self._timing.start_s
        with suppress(TimeoutError):  # the share of before holds until the loop has time
            self._on_loop(lambda: self._do_without(started=started))

    def _do_without(self, *, started: bool) -> None:
        for portion in self._portions:
            portion.do_without(started=started)

    def leave(self) -> None:
        """Give back what may be given back at the end; a fault leaves it to lapse."""
        try:
            self._on_loop(self._measure)
            remembered_since = self._presence.remembered_since()
            for portion, demand in zip(self._portions, self._demands, strict=True):
                portion.slots.leave(demand.used, self._timing.lapse_s, remembered_since)
            self._presence.leave(0, 0.0, remembered_since)
        except (LedgerFault, TimeoutError) as fault:
            log.debug("shares of upstream %s are left to lapse: %s", self._lane.upstream.name, fault)

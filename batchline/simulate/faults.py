"""When the stand-in misbehaves: shares by seed and request, orders in a prompt, and budgets."""

import re
import time
from enum import StrEnum
from hashlib import blake2b
from math import exp
from random import Random

from batchline.simulate.options import SimulatorOptions

MARK = b"simulate:"
SEPARATORS = "separators"
"""Ordered in a prompt only: a good answer whose text has Unicode's line separators in it, raw."""

_ORDER = re.compile(rb"simulate:([a-z_]+)(?:=([0-9]+))?")


class Fault(StrEnum):
    """A way not to answer well; the values are the names of the options' shares."""

    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNAVAILABLE = "unavailable"
    DROPPED = "dropped"
    CUT_OFF = "cut_off"
    HANGING = "hanging"
    TRUNCATED = "truncated"
    HTML = "html"
    ERROR_OBJECT = "error_object"


class Fate:
    """Decides what happens to a request from the seed, its body and how often that body came before."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._key = options.seed.to_bytes(8, "big", signed=True)
        self._shares = [(fault, getattr(options, fault)) for fault in Fault if getattr(options, fault)]
        self._needs_dice = bool(self._shares) or options.latency != "fixed"

    def ordered(self, body: bytes) -> tuple[str, int | None] | None:
        """Return the fault and status that the prompt orders, or None.

        An order is `simulate:<fault>`, `simulate:status=<number>` or `simulate:separators`.
        """
        if MARK not in body:
            return None
        found = _ORDER.search(body)
        return None if found is None else (found[1].decode(), int(found[2]) if found[2] else None)

    def dice(self, number: int, times: int) -> Random | None:
        """Chance for the request with that number, its `times`-th coming; none where nothing is random."""
        if not self._needs_dice:
            return None
        seed = blake2b(number.to_bytes(8, "big") + times.to_bytes(4, "big"), key=self._key, digest_size=8).digest()
        return Random(int.from_bytes(seed, "big"))

    def fault(self, dice: Random | None) -> Fault | None:
        """The fault that chance deals, if one."""
        if dice is None or not self._shares:
            return None
        throw = dice.random()
        for fault, share in self._shares:
            if throw < share:
                return fault
            throw -= share
        return None

    def latency_s(self, dice: Random | None) -> float:
        """How long the answer takes."""
        options = self._options
        if dice is None or options.latency == "fixed":
            return options.latency_s
        if options.latency == "uniform":
            return dice.uniform(0.0, 2 * options.latency_s)
        return options.latency_s * exp(dice.gauss(0.0, options.latency_sigma))


class Budget:
    """So many units in a minute that begins with its first: a fixed window, as servers have it."""

    def __init__(self, per_minute: int | None) -> None:
        self._most = per_minute
        self._spent = 0
        self._began = time.monotonic()

    def take(self, units: int) -> float | None:
        """Spend units; seconds until there are some again where there are not enough now."""
        if self._most is None:
            return None
        now = time.monotonic()
        if now - self._began >= 60.0 or not self._spent:
            self._began, self._spent = now, 0
        if self._spent + units > self._most and self._spent:
            return self._began + 60.0 - now
        self._spent += units
        return None

"""Faults of the simulator: random shares by seed and request, directives in a prompt, and rate limits."""

import re
import time
from enum import StrEnum
from hashlib import blake2b
from math import exp
from random import Random

from batchline.simulate.options import SimulatorOptions

DIRECTIVE_MARK = b"simulate:"
SEPARATORS = "separators"
"""A directive in a prompt only: a good answer with unescaped Unicode line separators in its text."""

_DIRECTIVE = re.compile(rb"simulate:([a-z_]+)(?:=([0-9]+))?")


class InjectedFault(StrEnum):
    """Kinds of faults; the values are the names of the options' shares."""

    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNAVAILABLE = "unavailable"
    DROPPED = "dropped"
    CUT_OFF = "cut_off"
    HANGING = "hanging"
    TRUNCATED = "truncated"
    HTML = "html"
    ERROR_OBJECT = "error_object"


class FaultInjector:
    """Chooses a request's fault by the seed, its body and the number of earlier equal bodies."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._key = options.seed.to_bytes(8, "big", signed=True)
        self._shares = [(fault, getattr(options, fault)) for fault in InjectedFault if getattr(options, fault)]
        self._needs_rng = bool(self._shares) or options.latency != "fixed"

    def read_directive(self, body: bytes) -> tuple[str, int | None] | None:
        """Return the fault and status that the prompt orders, or None.

        A directive is `simulate:<fault>`, `simulate:status=<number>` or `simulate:separators`.
        """
        if DIRECTIVE_MARK not in body:
            return None
        match = _DIRECTIVE.search(body)
        return None if match is None else (match[1].decode(), int(match[2]) if match[2] else None)

    def rng_for(self, body_digest: int, occurrence: int) -> Random | None:
        """Return the random generator of the body's `occurrence`-th request; None if nothing is random."""
        if not self._needs_rng:
            return None
        # By body and occurrence, so that the outcome does not depend on the order of concurrent requests.
        seed = blake2b(
            body_digest.to_bytes(8, "big") + occurrence.to_bytes(4, "big"), key=self._key, digest_size=8
        ).digest()
        return Random(int.from_bytes(seed, "big"))

    def draw_fault(self, rng: Random | None) -> InjectedFault | None:
        """Return a random fault, or None."""
        if rng is None or not self._shares:
            return None
        draw = rng.random()
        for fault, share in self._shares:
            if draw < share:
                return fault
            draw -= share
        return None

    def draw_latency_s(self, rng: Random | None) -> float:
        """Return the latency in seconds."""
        options = self._options
        if rng is None or options.latency == "fixed":
            return options.latency_s
        if options.latency == "uniform":
            return rng.uniform(0.0, 2 * options.latency_s)
        return options.latency_s * exp(rng.gauss(0.0, options.latency_sigma))


class FixedWindowLimit:
    """A limit per minute; the fixed window starts with its first unit, as real servers implement it."""

    def __init__(self, per_minute: int | None) -> None:
        self._limit = per_minute
        self._used = 0
        self._window_start = time.monotonic()

    def acquire(self, units: int) -> float | None:
        """Spend units and return None, or return the seconds until some are available."""
        if self._limit is None:
            return None
        now = time.monotonic()
        if now - self._window_start >= 60.0 or not self._used:
            self._window_start, self._used = now, 0
        # A single request above the limit passes alone, or it could never be answered.
        if self._used + units > self._limit and self._used:
            return self._window_start + 60.0 - now
        self._used += units
        return None

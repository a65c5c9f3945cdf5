"""Faults of the simulator: random shares by seed and request, directives in a prompt, and rate limits."""

import re
import time
from hashlib import blake2b
from math import exp
from random import Random
from typing import NamedTuple

from batchline.simulate.fault_kinds import FAULT_KINDS, SHARE_OPTIONS
from batchline.simulate.options import SimulatorOptions

DIRECTIVE_MARK = b"simulate:"

_DIRECTIVE = re.compile(rb"simulate:([a-z0-9_]+)(?:=([a-z0-9_]+))?")


class UnknownFault(ValueError):
    """A prompt asks for a fault that does not exist."""


class Directive(NamedTuple):
    """A fault that a prompt asks for; `status` belongs to the fault `status`."""

    fault: str
    status: int | None = None
    is_once: bool = False


class FaultInjector:
    """Chooses a request's fault by the seed, its body and the number of earlier equal bodies."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._key = options.seed.to_bytes(8, "big", signed=True)
        shares = {name: getattr(options, name) for name in SHARE_OPTIONS} | options.faults
        self._shares = [(name, share) for name, share in shares.items() if share]
        self._needs_rng = bool(self._shares) or options.latency != "fixed"

    def choose_fault(self, body: bytes, occurrence: int, rng: Random | None) -> tuple[str | None, int | None]:
        """Return the fault of the body's `occurrence`-th request, and its status; raises `UnknownFault`."""
        fault = self._draw_fault(rng)
        directive = read_directive(body)
        if directive is None:
            return fault, None
        return (None, None) if directive.is_once and occurrence > 1 else (directive.fault, directive.status)

    def rng_for(self, body_digest: int, occurrence: int) -> Random | None:
        """Return the random generator of the body's `occurrence`-th request; None if nothing is random."""
        if not self._needs_rng:
            return None
        # By body and occurrence, so that the outcome does not depend on the order of concurrent requests.
        seed = blake2b(
            body_digest.to_bytes(8, "big") + occurrence.to_bytes(4, "big"), key=self._key, digest_size=8
        ).digest()
        return Random(int.from_bytes(seed, "big"))

    def _draw_fault(self, rng: Random | None) -> str | None:
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


def read_directive(body: bytes) -> Directive | None:
    """Return the fault that the prompt asks for, or None; raises `UnknownFault`.

    A directive is `simulate:fault=<kind>` or `simulate:<kind>`, `simulate:once=<kind>` for the first of several
    equal requests, or `simulate:status=<number>`.
    """
    if DIRECTIVE_MARK not in body:
        return None
    match = _DIRECTIVE.search(body)
    if match is None:
        return None
    word, value = match[1].decode(), (match[2] or b"").decode()
    if word in {"fault", "once"}:
        if value not in FAULT_KINDS:
            raise UnknownFault(f"no fault is named {value!r}; the faults are {', '.join(FAULT_KINDS)}")
        return Directive(value, is_once=word == "once")
    return Directive(word, int(value) if value.isdecimal() else None)


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

"""What the stand-in's connections share, and what it counts."""

import json
import time
from collections import Counter
from typing import Any, Protocol

import msgspec

from batchline.simulate.faults import Budget, Fate
from batchline.simulate.options import SimulatorOptions


class Open(Protocol):
    """A client's connection."""

    def abort(self) -> None:
        """Close at once."""


class State:
    """What all connections share: options, budgets and counters."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.fate = Fate(options)
        self.key = options.api_key.get_secret_value() if options.api_key else None
        self.requests = Budget(options.requests_per_minute)
        self.tokens = Budget(options.tokens_per_minute)
        self.connections: set[Open] = set()
        self._log = None if options.log_file is None else options.log_file.open("ab", buffering=0)
        self.now_open = self.replies = 0
        self.reset()

    def note(self, event: str, body: bytes) -> None:
        """Write a line to the log, if there is one."""
        if self._log is not None:
            line = {"at": time.time(), "event": event, "user": _user_of(body)}
            self._log.write(json.dumps(line).encode() + b"\n")

    def reset(self) -> None:
        """Count from nothing."""
        self.received = self.bytes_received = self.most_at_once = self.abandoned = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.statuses: Counter[int] = Counter()
        self.paths: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.seen: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()

    def counters(self) -> dict[str, Any]:
        """The counts as JSON shows them.

        `repeated` counts comings of a body after its first, `abandoned` requests whose client left before the
        answer. `received` is the sum of `statuses`, `abandoned`, the faults `dropped`, `cut_off` and `hanging`,
        and what is under way.
        """
        return {
            "received": self.received,
            "bytes_received": self.bytes_received,
            "distinct": len(self.seen),
            "repeated": self.received - len(self.seen),
            "abandoned": self.abandoned,
            "answered_twice": sum(1 for times in self.answered.values() if times > 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "paths": dict(self.paths),
            "models": dict(self.models),
            "faults": dict(self.faults),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "most_at_once": self.most_at_once,
        }


def _user_of(body: bytes) -> str | None:
    """Return the body's `user`, by which clients can tell their requests apart, or None if it has none."""
    try:
        return msgspec.json.decode(body, type=_Body).user
    except msgspec.DecodeError:
        return None


class _Body(msgspec.Struct):
    user: str | None = None

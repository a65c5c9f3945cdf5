"""What the stand-in's connections share, and what it counts."""

from collections import Counter
from typing import Any, Protocol

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
        self.now_open = self.replies = 0
        self.reset()

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

"""State shared by the simulator's connections, with its counters."""

import asyncio
import json
import time
from collections import Counter
from typing import Any, NamedTuple

import msgspec

from batchline.simulate.fault_injection import FaultInjector, FixedWindowLimit
from batchline.simulate.options import SimulatorOptions
from batchline.simulate.replies import SimulatedReply


class HttpRequest(NamedTuple):
    """A request that a client sent; `digest` is a hash of its body."""

    method: str
    path: str
    body: bytes
    api_key: str | None
    keep_alive: bool
    digest: int


class _UserField(msgspec.Struct):
    user: str | None = None


class SimulatorState:
    """Options, limits and counters that all connections share."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.fault_injector = FaultInjector(options)
        self.api_key = options.api_key.get_secret_value() if options.api_key else None
        self.request_limit = FixedWindowLimit(options.requests_per_minute)
        self.token_limit = FixedWindowLimit(options.tokens_per_minute)
        self.connections: set[asyncio.Transport] = set()
        # Unbuffered: complete even if the process is killed.
        self._log = None if options.log_file is None else options.log_file.open("ab", buffering=0)
        self.open_requests = self.replies = 0
        self.reset()

    def count_received(self, request: HttpRequest) -> None:
        """Count and log a request for a model."""
        self.received += 1
        self.bytes_received += len(request.body)
        self.paths[request.path] += 1
        self.received_bodies[request.digest] += 1
        self._log_event("received", request.body)

    def count_answered(self, request: HttpRequest, reply: SimulatedReply) -> None:
        """Count and log a good answer."""
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.answered_bodies[request.digest] += 1
        self.statuses[200] += 1
        self._log_event("answered", request.body)

    def _log_event(self, event: str, body: bytes) -> None:
        """Write a line with the body's `user`, by which clients can tell their requests apart, to the log."""
        if self._log is None:
            return
        try:
            user = msgspec.json.decode(body, type=_UserField).user
        except msgspec.DecodeError:
            user = None
        self._log.write(json.dumps({"at": time.time(), "event": event, "user": user}).encode() + b"\n")

    def reset(self) -> None:
        """Reset the counters."""
        self.received = self.bytes_received = self.max_open_requests = self.abandoned = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.statuses: Counter[int] = Counter()
        self.paths: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.received_bodies: Counter[int] = Counter()
        self.answered_bodies: Counter[int] = Counter()

    def counters(self) -> dict[str, Any]:
        """Return the counters as JSON values.

        `repeated` counts requests whose body came before, `abandoned` those whose client left before the answer.
        `received` is the sum of `statuses`, `abandoned`, the faults `dropped`, `cut_off` and `hanging`, and the
        requests in flight.
        """
        return {
            "received": self.received,
            "bytes_received": self.bytes_received,
            "distinct": len(self.received_bodies),
            "repeated": self.received - len(self.received_bodies),
            "abandoned": self.abandoned,
            "answered_twice": sum(1 for count in self.answered_bodies.values() if count > 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "paths": dict(self.paths),
            "models": dict(self.models),
            "faults": dict(self.faults),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "most_at_once": self.max_open_requests,
        }

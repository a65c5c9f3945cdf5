"""The progress of a session, for display."""

import msgspec


class SessionProgress(msgspec.Struct, frozen=True):
    """The progress of one session; `limit` and `ceiling` are sums over the upstreams it can call."""

    completed: int
    failed: int
    in_flight: int
    attempts: int
    retried: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    limit: int
    ceiling: int
    paused: str | None
